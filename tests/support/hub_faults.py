"""Make each request of a job on the stand-in Hub go wrong once, or interrupt the job there, as Ctrl-C does."""

import signal
import threading
from contextlib import contextmanager

from laion_face_builder.sandbox.serving import Answer, Fault

#: What may happen to a request once; the next one like it is answered.
ONCE = {
    "the connection ends": Fault("", {}, take=0),
    "the answer is lost": Fault("", {"body": b"?", "span": None, "cut_after": 0}),
    "503": Fault("", {"status": 503}, unheard=True),
    "503 though it was done": Fault("", {"status": 503}),
    "429": Fault("", {"status": 429}, unheard=True),
}


@contextmanager
def every_request_fails_once(hub, monkeypatch, how):
    """Spoil each request the first time that it is asked, by its method and address; yield which these were."""
    asked = []

    def faults_of(request):
        known = (request.method, request.path.partition("/lfs-uploads/")[1] or request.target)
        if known in asked or (request.method == "HEAD" and how == "the answer is lost"):  # It is in the headers.
            return []
        asked.append(known)
        return [ONCE[how]]

    with monkeypatch.context() as patch:
        patch.setattr(hub, "faults_of", faults_of)
        yield asked


class Interruptions:
    """Interrupts a job at requests that change something on the Hub: before each kind of these once, and after it."""

    def __init__(self, hub, monkeypatch):
        self.hub, self.monkeypatch = hub, monkeypatch
        self.done = []

    @contextmanager
    def next_one(self):
        """Interrupt what runs in here at the next place where it never was; it ends the block then."""
        answer, is_over, before = self.hub.answer, threading.Event(), len(self.done)

        def interrupting(request):
            kind = _change(request)
            known = [is_done for is_done in (False, True) if (kind, is_done) in self.done]
            if kind is None or len(known) == 2 or len(self.done) > before:
                return answer(request)
            self.done.append((kind, bool(known)))
            given = answer(request) if known else Answer(500)
            # One that comes just before the main thread waits for us would be noticed only once we have answered.
            while not is_over.is_set():
                signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)
                is_over.wait(0.2)
            return given

        interrupts = iter([KeyboardInterrupt])

        def once(number, frame):
            for interrupt in interrupts:
                raise interrupt

        with self.monkeypatch.context() as patch:
            patch.setattr(self.hub, "answer", interrupting)
            usual = signal.signal(signal.SIGINT, once)
            try:
                yield
            except KeyboardInterrupt:
                assert len(self.done) > before
            finally:
                is_over.set()
                signal.signal(signal.SIGINT, usual)


def _change(request):
    """Say what a request changes; None for one that changes nothing that anybody sees."""
    if "/commit/" in request.path:
        return "commit with data" if b"lfsFile" in request.body else "commit"
    kinds = ("/lfs-uploads/", "/super-squash/", "/lfs-files/batch")
    return next((kind for kind in kinds if kind in request.path), None)
