"""How the stand-in Hub answers: JSON, or a refusal in the headers that huggingface_hub makes its errors from."""

from __future__ import annotations

import json

from laion_face_builder.sandbox.messages import Answer


class Refused(Exception):
    """Ends a request with a refusal."""

    def __init__(self, status: int, code: str, message: str) -> None:
        self.answer = refusal(status, code, message)
        super().__init__(message)


def refusal(status: int, code: str, message: str) -> Answer:
    """Return an error as the Hub says it: a status, a code for machines and a message for people."""
    headers = {"X-Error-Code": code, "X-Error-Message": message, "Content-Type": "application/json"}
    return Answer(status, json.dumps({"error": message}).encode(), headers)


def json_answer(value: object, status: int = 200, **headers: str) -> Answer:
    """Return `value` as a JSON answer."""
    return Answer(status, json.dumps(value).encode(), {"Content-Type": "application/json", **headers})
