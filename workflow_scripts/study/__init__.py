"""Used by the Snakefile while it is parsed; imports only packages that Snakemake installs."""
