"""srt_kernels inside other projects. Each project has a module of its own; none imports another."""
