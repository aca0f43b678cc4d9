"""Make the archive of the demo task, in MSD's format."""

if __name__ == "__main__":
    from log import redirect

    redirect(snakemake.log[0])

    from demo_task import write_archive

    write_archive(
        path=snakemake.output.archive,
        cases=snakemake.params.cases,
        seed=snakemake.params.seed,
    )
