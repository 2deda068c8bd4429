"""A resolution becomes files: slabs, threads, shards, resume. May import `resolve` and the kernels."""
