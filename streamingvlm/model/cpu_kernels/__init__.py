"""Optional CPU kernels that use private operators of torch; ``load_model(cpu_kernels=False)`` loads a model without."""
