"""What the Snakefile asks while it is parsed; imports only what Snakemake installs."""
