"""srt_kernels inside other projects: one thin file for each."""
