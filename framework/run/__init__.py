"""Running experiments: config, build, launch, and the store that commits samples."""
