"""Put together what the page needs, so that nothing is loaded from elsewhere."""

import hashlib
import json
import os
import shutil
import subprocess
import tempfile
from pathlib import Path

from course_utils import cache, models
from course_utils.errors import CourseError
from course_utils.phone import export, packed

SOURCE = Path(__file__).resolve().parents[2] / "web"
PAGE = ("index.html", "style.css", "page.js", "worker.js", "decode.js", "files.js", "service-worker.js",
        "manifest.webmanifest", "icon.svg")
# What is taken out of the packages that web/package-lock.json pins: file -> place in the page.
LIBRARIES = {
    "onnxruntime-web/dist/ort.webgpu.min.mjs": "ort/ort.webgpu.min.mjs",
    "onnxruntime-web/dist/ort.wasm.min.mjs": "ort/ort.wasm.min.mjs",
    "onnxruntime-web/dist/ort-wasm-simd-threaded.mjs": "ort/ort-wasm-simd-threaded.mjs",
    "onnxruntime-web/dist/ort-wasm-simd-threaded.wasm": "ort/ort-wasm-simd-threaded.wasm",
    "onnxruntime-web/dist/ort-wasm-simd-threaded.asyncify.mjs": "ort/ort-wasm-simd-threaded.asyncify.mjs",
    "onnxruntime-web/dist/ort-wasm-simd-threaded.asyncify.wasm": "ort/ort-wasm-simd-threaded.asyncify.wasm",
    "@wllama/wllama/esm/index.js": "wllama/index.js",
    "@wllama/wllama/esm/wasm/wllama.wasm": "wllama/wllama.wasm",
    "@huggingface/tokenizers/dist/tokenizers.min.mjs": "tokenizer/tokenizers.min.mjs",
    "@huggingface/jinja/dist/index.js": "tokenizer/jinja.js",
}


def default_folder() -> Path:
    """Where the page is built unless another folder is named."""
    return cache.cache_dir() / "phone-page"


def build(folder: Path | None = None) -> Path:
    """Build the page.

    It is written into a folder aside and renamed, so an interrupted build leaves the last one.

    Args:
        folder: where to; by default `default_folder`.

    Returns:
        The folder.

    Raises:
        CourseError: there is no npm, npm failed, or something could not be made.
    """
    folder = Path(folder or default_folder()).absolute()
    if folder.exists() and not (folder / "files.json").exists():
        raise CourseError(f"{folder} exists and is no built page: name another folder with --out")
    libraries = install_libraries()
    model = export.onnx_folder()
    gguf = models.embedded_gguf()
    tokenizer = packed.checkpoint_folder()
    folder.parent.mkdir(parents=True, exist_ok=True)
    aside = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        for name in PAGE:
            shutil.copy(SOURCE / name, aside / name)
        for source, place in LIBRARIES.items():
            copy(libraries / source, aside / place)
        for name in ("model.onnx", "unpacked.onnx", "model.onnx.data"):
            copy(model / name, aside / "model" / name)
        copy(gguf, aside / "model" / "model.gguf")
        for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
            copy(tokenizer / name, aside / "model" / "tokenizer" / name)
        (aside / "files.json").write_text(json.dumps(listing(aside), indent=1) + "\n", encoding="utf-8")
        os.chmod(aside, 0o755)
        if folder.exists():
            shutil.rmtree(folder)
        os.replace(aside, folder)
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    return folder


def install_libraries() -> Path:
    """The packages of web/package-lock.json, by npm, in the cache.

    Returns:
        The folder node_modules.

    Raises:
        CourseError: there is no npm, or it failed.
    """
    npm = shutil.which("npm")
    lock = SOURCE / "package-lock.json"
    version = hashlib.sha256(lock.read_bytes()).hexdigest()[:16]

    def install(folder: Path) -> None:
        if npm is None:
            raise CourseError("`course phone build` needs npm: install Node.js (package nodejs and npm)")
        for name in ("package.json", "package-lock.json"):
            shutil.copy(SOURCE / name, folder / name)
        print("npm fetches the engines of the page ...")
        done = subprocess.run(
            [npm, "ci", "--ignore-scripts", "--omit=optional", "--no-audit", "--no-fund"], cwd=folder,
            capture_output=True, text=True)
        if done.returncode:
            raise CourseError(f"npm ci failed: {(done.stderr or done.stdout).strip()[-500:]}")
        shutil.rmtree(folder / "node_modules" / ".bin", ignore_errors=True)  # links to programs

    return cache.cached_folder("phone-libraries", install, version, 500) / "node_modules"


def copy(source: Path, place: Path) -> None:
    """Put a file at its place; hard-linked where the system can, for the model is large."""
    place.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(source, place)
    except OSError:
        shutil.copy(source, place)


def listing(folder: Path) -> dict:
    """Bytes and SHA-256 of each file of the page, and a version made of them all.

    The page compares the model's files with it, and the service worker keeps them under the version.
    """
    files = {path.relative_to(folder).as_posix(): {"bytes": path.stat().st_size, "sha256": cache.sha256(path)}
             for path in sorted(folder.rglob("*")) if path.is_file()}
    version = hashlib.sha256(json.dumps(files, sort_keys=True).encode()).hexdigest()[:16]
    return {"version": version, "files": files}
