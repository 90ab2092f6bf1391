"""Names that a config may give of diffusion, kept where reading one imports no jax."""

# The samplers of each family of processes.
SAMPLERS = {"gaussian": ("ddpm", "ddim", "dpm++"), "flow": ("euler", "heun")}

# Which timesteps fewer steps keep, by the names of Lin et al. 2024 (table 2).
SPACINGS = ("linspace", "leading")
