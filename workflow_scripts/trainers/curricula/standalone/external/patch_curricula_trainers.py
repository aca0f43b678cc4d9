"""Where nnU-Net finds the trainers; the only module of the folder for `nnUNet_extTrainer`.

nnU-Net forgets the modules of that folder after its lookup, so the classes are elsewhere.
"""

from patch_curricula.standalone.trainers import CLASSES

globals().update(CLASSES)
