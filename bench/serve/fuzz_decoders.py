"""The decoders under coverage-guided mutation: .venv/bin/python bench/serve/fuzz_decoders.py [--seconds 60].

`atheris` (pip install atheris) follows which lines of the decoders an input reaches, and mutates towards new ones; it
starts from the good bodies of `bodies.py`. What a decoder raises beside a refusal is a defect: it is printed with its
input, and the exit status is 1. `fuzz.py` does the same over HTTP, without looking inside.
"""

import argparse
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # for container.serve

import atheris

with atheris.instrument_imports(include=["container.images", "container.serve"]):
    from container.images import ImageError, decode_image, image_extent
    from container.serve import codec
    from container.serve.exchange import BadRequest, BodyTooLarge
    from container.serve.record_messages import read_example, read_record

import contextlib

from bodies import seeds

REFUSALS = (BadRequest, BodyTooLarge, ImageError)
LONGEST = 4096  # bytes of an input


def image(body: bytes) -> None:
    image_extent(body)
    decode_image(body, 3)


# Content type -> its decoder; of the two record formats also what lies behind their checksums, which no mutation hits.
DECODERS: dict[str, Callable[[bytes], object]] = {
    **{kind: (lambda body, kind=kind: codec.decode_array(body, kind)) for kind in codec.ARRAY_TYPES},
    **{kind: (lambda body, kind=kind: codec.decode_array(body, kind)) for kind in codec.RECORD_TYPES},
    "image/png": image,
    "image/jpeg": image,
    "image/webp": image,
    "image/gif": image,
    "image/bmp": image,
    "record": lambda body: read_record(body, 1),
    "example": lambda body: read_example(body, 1),
}


def good(kind: str) -> list[bytes]:
    bodies = seeds()
    inner = {"record": [bodies[codec.RECORDIO][0][8:]], "example": [bodies[codec.TFRECORD][0][12:-4]]}
    return inner.get(kind) or bodies[kind]


def fuzz(kind: str, seconds: int, corpus: Path) -> None:
    """Fuzz one decoder in this process, which libFuzzer ends."""
    decode = DECODERS[kind]

    def once(data: bytes) -> None:
        with contextlib.suppress(REFUSALS):
            decode(data)

    for number, body in enumerate(good(kind)):
        (corpus / f"good{number}").write_bytes(body)
    argv = [sys.argv[0], str(corpus), f"-max_total_time={seconds}", f"-max_len={LONGEST}", "-print_final_stats=1"]
    atheris.Setup([*argv, f"-artifact_prefix={corpus}/", "-verbosity=1", "-rss_limit_mb=4096"], once)
    atheris.Fuzz()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=int, default=60, help="for each decoder")
    parser.add_argument("--kind", choices=DECODERS, help="this decoder alone")
    parser.add_argument("--corpus", type=Path, help="where its inputs are kept; with --kind")
    arguments = parser.parse_args()
    if arguments.corpus:
        fuzz(arguments.kind, arguments.seconds, arguments.corpus)
    failed = 0
    for kind in [arguments.kind] if arguments.kind else DECODERS:
        with tempfile.TemporaryDirectory() as directory:
            argv = [sys.executable, __file__, "--kind", kind, "--corpus", directory]
            done = subprocess.run(
                [*argv, "--seconds", str(arguments.seconds)], capture_output=True, text=True, errors="replace"
            )
        lines = done.stderr.splitlines()
        runs = next((line.split()[-1] for line in lines if line.startswith("stat::number_of_executed_units")), "?")
        covered = next((line.split("cov: ")[1].split()[0] for line in reversed(lines) if "cov: " in line), "?")
        found = "defect" if done.returncode else "no defect"
        print(f"{kind:34} {runs:>9} inputs  {covered:>5} edges  {found}", flush=True)
        if done.returncode:
            failed = 1
            print("\n".join((done.stdout + done.stderr).splitlines()[-30:]))
    return failed


if __name__ == "__main__":
    sys.exit(main())
