"""What `softmux bench` measures: each bench's name, the module whose `main` runs it, and what it is for."""

from __future__ import annotations

from dataclasses import dataclass

DEFAULT = "mixed"


@dataclass(frozen=True, slots=True)
class Bench:
    """`module` is below `softmux.bench`; its function `main` takes the arguments, and has a parser of its own."""

    module: str
    about: str
    main: str = "main"


ROOMS: dict[str, dict[str, Bench]] = {
    "a load of your own: arrivals, task mixes, lengths, percentiles, goodput, A/B": {
        "serve": Bench("clients.serve", "a load over HTTP, on a server that runs"),
        "offline": Bench("peers.inprocess", "the same load on the engine in this process, beside its peers"),
        "client": Bench("clients.ceiling", "what the load's own client can send and read"),
    },
    "beside other ways to answer the same": {
        "mixed": Bench("peers.on_demo", "mixed tasks beside the ways of serving them without softmux", "mixed"),
        "service": Bench("peers.service", "the HTTP service beside its engine"),
        "tiers": Bench("peers.on_demo", "what an adapter costs that is not resident", "tiers"),
        "all": Bench("peers.on_demo", "mixed, service and tiers", "everything"),
        "methods": Bench("peers.methods", "adapters of several methods and the bare model on the same held-out rows"),
        "seq2seq": Bench("peers.seq2seq", "mixed tasks on an encoder-decoder, against PEFT's loop"),
        "encoders": Bench("peers.encoders", "short texts over many tasks on an encoder, against padded pipelines"),
        "structured": Bench("peers.structured", "random JSON schemas beside free rows: how many documents are valid"),
        "grammars": Bench("peers.grammars", "llguidance against xgrammar on many tenants' different schemas"),
    },
    "what the device can do": {
        "gpu": Bench("device.gpu", "a GPU's steps over the bytes they must move, and whole workloads"),
        "mixed-steps": Bench("device.mixed_steps", "steps into which requests come, by CUDA graphs and without"),
        "prefill": Bench("device.prefill", "prompts taken in: the share of the device's own matmul rate"),
        "products": Bench("device.products", "a step's matrix products, each way, beside the card's copy rate"),
        "attention": Bench("device.attention", "what pages of one token cost, and how the backends compare"),
        "heads": Bench("device.heads", "64 heads beside one"),
        "cartridges": Bench("device.cartridges", "what trained keys and values of thousands of tokens save"),
        "residency": Bench("device.residency", "throughput and latency as tasks outgrow the GPU's and the host's room"),
        "swap": Bench("device.swap", "what a step's copies to the GPU and back cost"),
        "host": Bench("device.host", "what the host does for a step, with a model that takes no time"),
        "precision": Bench("device.precision", "what fewer bits cost: logits against the eager module's"),
        "formats": Bench("device.formats", "a base in several formats: memory, throughput, what tuned tasks are worth"),
    },
    "too much, for too long, and broken": {
        "fairness": Bench("services.fairness", "what a neighbour beyond its share costs a tenant"),
        "faults": Bench("services.faults", "a server asked too much, left by its clients, ended and broken"),
        "endurance": Bench("services.endurance", "a service over many tasks while versions come and go"),
        "soak": Bench("services.soak", "random load on an engine too small for it, its books checked all the time"),
        "cluster": Bench("cluster.bench", "replicas behind Ray Serve, killed and joining; and 100 GPUs simulated"),
    },
    "making tasks": {
        "tuning": Bench("training.tuning", "many tasks trained at once beside one by one: tasks an hour, memory"),
        "from-csv": Bench("training.from_csv", "the time from a user's CSV to a served answer"),
        "migrate": Bench("training.migrate", "what the shipped tasks keep when their base changes"),
        "peft-training": Bench("training.peft_training", "a recipe as softmux trains it and as PEFT does, by seed"),
    },
    "for other benches": {
        "checkpoint": Bench("bases.checkpoint", "writes a folder of random weights that a server can be started on"),
    },
}  # fmt: skip

BENCHES = {name: bench for room in ROOMS.values() for name, bench in room.items()}
