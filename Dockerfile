# Everything that the workflow needs, from requirements.lock; the workflow itself is mounted
# (docs/how-to/environments.md). The project's tests do not build this image, because they cannot
# reach an image registry. They only check the names in this file.
FROM python:3.11-slim-bookworm

# g++ for torch.compile; git for the workflow's commit in the record of a run.
RUN apt-get update \
 && apt-get install --yes --no-install-recommends g++ git \
 && rm -rf /var/lib/apt/lists/* \
 && git config --system --add safe.directory '*'

COPY requirements.lock /opt/requirements.lock
RUN python -m pip install --no-cache-dir --disable-pip-version-check -r /opt/requirements.lock

# The user has neither a name nor a home in the container, and Snakemake asks for both. The user's
# own packages stay out.
ENV USER=workflow HOME=/tmp PYTHONNOUSERSITE=1
WORKDIR /workflow
CMD ["snakemake", "--cores", "all"]
