"""Draw the pictures of the pages into docs/images.

    python docs/pictures

Each module beside this one draws the pictures of some pages, and has a table `PICTURES` of them.
"""

from pathlib import Path

import architecture
import inside
import learn_model
import learn_scale
import learn_training

IMAGES = Path(__file__).parent.parent / "images"
MODULES = (architecture, inside, learn_model, learn_scale, learn_training)
PICTURES = {name: draw for module in MODULES for name, draw in module.PICTURES.items()}
"""Names of the files in docs/images, and what draws them."""

if __name__ == "__main__":
    for name, draw in PICTURES.items():
        (IMAGES / f"{name}.svg").write_text(draw().svg(), encoding="utf-8")
