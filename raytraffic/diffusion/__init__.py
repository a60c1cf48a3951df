"""The diffusion every model shares: schedule, process (training target and loss weight), samplers, priors."""
