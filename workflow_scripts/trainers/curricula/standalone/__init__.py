"""Use of the trainers without the workflow, as the package `patch_curricula`; no arm needs it."""
