"""Link the archive of one MSD task from a local folder, or download it; verify its checksum."""

from workflow_scripts.common.console import redirect
from workflow_scripts.data.archives import fetch_archive

if __name__ == "__main__":
    redirect(snakemake.log[0])

    task = snakemake.wildcards.task
    # The location of an archive does not affect its content. Read it from the config, not from
    # params, so that a run without `archives=DIR` does not download and train everything again.
    fetch_archive(
        task=task,
        url=snakemake.params.url,
        md5=snakemake.params.md5,
        archive=snakemake.output.archive,
        archives=snakemake.config["archives"],
        extra_md5=snakemake.config["checksums"].get(task),
    )
