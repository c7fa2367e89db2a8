"""A processing job: pictures of any size become small PNG files, each host doing its part.

As `ContainerArguments` of a processing job in the training image:

    ["process", "/opt/ml/processing/code/prepare.py", "--pixels", "28"]
"""

import argparse

from PIL import Image

from container.train import processing_environment, whole_file

parser = argparse.ArgumentParser()
parser.add_argument("--pixels", type=int, default=28)
pixels = parser.parse_args().pixels

environment = processing_environment()
pictures = environment.input_files("raw", suffixes=(".png", ".jpg", ".jpeg"))
for number, path in enumerate(pictures, start=1):
    target = environment.output("clean") / path.relative_to(environment.input("raw")).with_suffix(".png")
    with Image.open(path) as picture, whole_file(target) as file:  # a stop leaves whole pictures only
        picture.convert("L").resize((pixels, pixels)).save(file)
    print(f"{number} of {len(pictures)}: {target.name}", flush=True)
