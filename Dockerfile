# nestwalk with what real guests need, for those without Rust:
#   docker build --tag nestwalk . && docker run --rm nestwalk compare
# Files of the host: docker run --rm --volume "$PWD:/here" --workdir /here nestwalk compare trace.nwt
# A real guest: docker run --rm nestwalk compare --guest -- gcc -O2 -c matmul.c
FROM rust:1.95.0-slim-trixie
RUN apt-get update && \
    DEBIAN_FRONTEND=noninteractive apt-get install --yes --no-install-recommends \
        ca-certificates gcc libc6-dev qemu-system-x86 valgrind && \
    apt-get clean
ENV NESTWALK_CACHE=/var/cache/nestwalk
WORKDIR /nestwalk
COPY . .
RUN cargo build --release --locked && \
    target/release/nestwalk setup --package gcc --package libc6-dev
WORKDIR /nestwalk/samples
ENTRYPOINT ["/nestwalk/target/release/nestwalk"]
CMD ["compare"]
