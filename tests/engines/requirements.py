"""What a package that is installed needs besides PyTorch, one requirement a line.

    requirements.py PACKAGE
"""
import importlib.metadata
import sys

from pip._vendor.packaging.requirements import Requirement

LEFT_OUT = ("torch", "torchaudio", "torchcodec", "torchvision")

for line in importlib.metadata.requires(sys.argv[1]) or ():
    requirement = Requirement(line)
    wanted = requirement.marker is None or requirement.marker.evaluate({"extra": ""})
    if wanted and requirement.name not in LEFT_OUT:
        requirement.marker = None
        print(requirement)
