"""Make each request of a job on the stand-in Hub go wrong once, or interrupt the job there, as Ctrl-C does."""

import signal
import threading
from contextlib import contextmanager

from laion_face_builder.sandbox.serving import Fault

#: What may happen to a request once; the next one like it is answered.
ONCE = {
    "the connection ends": {"take": 0},
    "the answer is lost": {"spoil": {"body": b"?", "cut_after": 0}},
    "503": {"spoil": {"status": 503}, "unheard": True},
    "503 after it was done": {"spoil": {"status": 503}},
    "429": {"spoil": {"status": 429}, "unheard": True},
}


@contextmanager
def every_request_fails_once(hub, monkeypatch, how):
    """Spoil each request the first time that it is asked, by its method and path; yield which these were."""
    asked = []

    def faults_of(request):
        known = (request.method, request.path.partition("/lfs-uploads/")[1] or request.target)
        if known in asked or (request.method == "HEAD" and how == "the answer is lost"):  # It is in the headers.
            return []
        asked.append(known)
        return [Fault("", **{"spoil": {}, **ONCE[how]})]

    with monkeypatch.context() as patch:
        patch.setattr(hub, "faults_of", faults_of)
        yield asked


@contextmanager
def interrupted_at(hub, monkeypatch, number, *, is_done, counts=lambda request: request.method in ("POST", "PUT")):
    """Interrupt the main thread at the `number`-th request that counts, from 0; yield those that counted.

    Args:
        is_done: whether the Hub acts on the request first.
    """
    counted, answer, is_over = [], hub.answer, threading.Event()

    def interrupting(request):
        if not counts(request):
            return answer(request)
        counted.append(f"{request.method} {request.path}")
        if len(counted) - 1 != number:
            return answer(request)
        given = answer(request) if is_done else None
        signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)
        is_over.wait()
        return given or answer_none()

    with monkeypatch.context() as patch:
        patch.setattr(hub, "answer", interrupting)
        try:
            yield counted
        except KeyboardInterrupt:
            pass
        finally:
            is_over.set()


def answer_none():
    """Return what nobody hears any more."""
    from laion_face_builder.sandbox.serving import Answer

    return Answer(500)
