"""softmux on several machines, as a Ray Serve application: replicas of the whole server behind an adapter-aware router.

`serve run softmux.cluster.app:build model=… redis=redis://… blobs=s3://…`, or a Serve config file that names the same
(`deploy/ray/`). Needs the extra `ray`. Replicas share a Redis and a blob store; each is a `softmux serve` of its own.
"""
