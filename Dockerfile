# The course in a container, for machines that torch has no build for, such as Intel Macs. The link that it prints, with
# its token, opens on this machine alone:
#   docker build -t ftlib . && docker run --rm -it -p 127.0.0.1:8888:8888 ftlib
FROM python:3.12-slim AS base
RUN apt-get update && apt-get install -y --no-install-recommends git make && rm -rf /var/lib/apt/lists/* \
    && useradd --create-home learner
USER learner

FROM base
WORKDIR /home/learner/course
COPY --chown=learner Makefile pyproject.toml requirements.lock requirements.hashes README.md LICENSE ./
COPY --chown=learner ftlib ftlib
COPY --chown=learner notebooks notebooks
RUN make .venv/.installed
# Inside a container, 127.0.0.1 would be out of reach; outside, the port is published on 127.0.0.1.
CMD ["make", "lab", "IP=0.0.0.0"]
