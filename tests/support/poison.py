"""Pictures that kill or hang their decoder, really: a Python of its own, whose Pillow and OpenCV do what a bug would.

The decoders of this Python look for a word in each picture. So nothing is mocked: whoever decodes such a picture, in
whichever process, is dead or hangs.
"""

from __future__ import annotations

import io
import site
import sys
import sysconfig
from pathlib import Path

from PIL import Image, PngImagePlugin

#: What a picture does -> how it is counted. LOCK hangs and holds Python's lock, SPIN hangs at work.
DEEDS = {
    "ABRT": "crashed_decoder",
    "SEGV": "crashed_decoder",
    "HANG": "decode_timeout",
    "LOCK": "decode_timeout",
    "SPIN": "decode_timeout",
}
#: Seconds that a hanging decoder is waited for here.
PATIENCE = 2

_HOOK = f"""
import ctypes, importlib.util, os, re, sys, time

def _spin():
    while True:
        pass

DEEDS = {{
    b"ABRT": os.abort,
    b"SEGV": lambda: ctypes.string_at(0),
    b"HANG": lambda: time.sleep(1e6),
    b"LOCK": lambda: ctypes.PyDLL(None).sleep(1_000_000),
    b"SPIN": _spin,
}}

def swallow(data):
    found = re.search(b"!!POISON-(....)!!", data)
    if found:
        DEEDS[found[1]]()

def pillow(module):
    load = module.ImageFile.load
    def poisoned(self):
        if hasattr(self.fp, "getvalue"):
            swallow(self.fp.getvalue())
        return load(self)
    module.ImageFile.load = poisoned

def opencv(module):
    imdecode = module.imdecode
    def poisoned(data, *how):
        swallow(data.tobytes())
        return imdecode(data, *how)
    module.imdecode = poisoned

def patience(module):
    module.PATIENCE = {PATIENCE}

CHANGES = {{"PIL.ImageFile": pillow, "cv2": opencv, "laion_face_builder.images.apart": patience}}

class Finder:
    @staticmethod
    def find_spec(name, path=None, target=None):
        if name not in CHANGES:
            return None
        change = CHANGES.pop(name)
        spec = importlib.util.find_spec(name)
        execute = spec.loader.exec_module
        def executed(module):
            execute(module)
            change(module)
        spec.loader.exec_module = executed
        return spec

sys.meta_path.insert(0, Finder)
"""


def poisonous_python(folder: Path) -> str:
    """Make an environment in `folder` with all that this one has, and such decoders; return its Python."""
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    packages = folder / "lib" / version / "site-packages"
    packages.mkdir(parents=True)
    (folder / "bin").mkdir()
    base = Path(getattr(sys, "_base_executable", sys.executable)).resolve()
    (folder / "pyvenv.cfg").write_text(f"home = {base.parent}\ninclude-system-site-packages = false\n")
    (folder / "bin" / "python").symlink_to(base)
    (packages / "poison_hook.py").write_text(_HOOK)
    ours = dict.fromkeys([sysconfig.get_path("purelib"), sysconfig.get_path("platlib"), *site.getsitepackages()])
    lines = ["import poison_hook", *(f"import site; site.addsitedir({path!r})" for path in ours)]
    (packages / "poison.pth").write_text("\n".join(lines) + "\n")
    return str(folder / "bin" / "python")


def poison(deed: str, form: str, shade: int = 0) -> bytes:
    """Make a small picture, JPEG or PNG, that is like any other but for its deed."""
    word = f"!!POISON-{deed}!!"
    out, image = io.BytesIO(), Image.linear_gradient("L").resize((120, 80)).convert("RGB")
    image.putpixel((0, 0), (shade % 256, 0, 0))
    if form == "PNG":
        text = PngImagePlugin.PngInfo()
        text.add_text("Comment", word)
        image.save(out, "PNG", pnginfo=text)
    else:
        image.save(out, "JPEG", comment=word)
    return out.getvalue()
