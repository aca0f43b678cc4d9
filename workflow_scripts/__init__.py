"""The code of the workflow: one folder a stage, named as the rule files; README.md lists them."""
