"""Link the archive of one MSD task from a local folder, or download it; verify its checksum."""

if __name__ == "__main__":
    from log import redirect

    redirect(snakemake.log[0])

    from msd import fetch_archive

    task = snakemake.wildcards.task
    # Where an archive lies says nothing about what it holds: read from the config and not from
    # params, so that a run without `archives=DIR` does not download and train everything anew.
    fetch_archive(
        task=task,
        url=snakemake.params.url,
        md5=snakemake.params.md5,
        archive=snakemake.output.archive,
        archives=snakemake.config["archives"],
        extra_md5=snakemake.config["checksums"].get(task),
    )
