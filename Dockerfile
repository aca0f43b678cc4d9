# All that the workflow needs, from requirements.lock; the workflow itself is mounted (docs/how-to/environments.md).
# Not built by the project's own tests, which reach no registry of images; they check what it names.
FROM python:3.11-slim-bookworm

# g++ for torch.compile; git tells a run's record the workflow's commit.
RUN apt-get update \
 && apt-get install --yes --no-install-recommends g++ git \
 && rm -rf /var/lib/apt/lists/* \
 && git config --system --add safe.directory '*'

COPY requirements.lock /opt/requirements.lock
RUN python -m pip install --no-cache-dir --disable-pip-version-check -r /opt/requirements.lock

# Whoever runs it has neither a name nor a home in here (Snakemake asks for both); their own packages stay out.
ENV USER=workflow HOME=/tmp PYTHONNOUSERSITE=1
WORKDIR /workflow
CMD ["snakemake", "--cores", "all"]
