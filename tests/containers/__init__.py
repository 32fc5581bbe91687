"""`make containers`: the image and the compose file on a real Docker server, without a registry of images.

Owns the machine around it (`machine`), the images (`images`) and the run (`__main__`). Needs root and Debian.
"""

from pathlib import Path

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
FOLDER = ROOT / "build/containers"  # what is kept from one run to the next: tools and base images
