"""The noise space of DDPM sampling, in the plane and on pictures: the claims of edit-friendly inversion as figures."""
