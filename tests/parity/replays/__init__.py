"""One replay per recorded method: reads settings and inputs of a case, returns what the project computes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from tests.parity.case import Case
from tests.parity.replays.ddim import replay_ddim
from tests.parity.replays.diffedit import replay_diffedit
from tests.parity.replays.direct_inversion import replay_direct_inversion
from tests.parity.replays.flow_analytic import replay_flow_inversion_analytic
from tests.parity.replays.flow_editing import replay_flowalign, replay_flowedit, replay_uniedit_flow
from tests.parity.replays.flow_solvers import replay_rf_inversion, replay_solver, replay_two_stage
from tests.parity.replays.infedit import replay_infedit
from tests.parity.replays.ledits import replay_ledits
from tests.parity.replays.ledits_pp import replay_ledits_pp, replay_ledits_pp_repo
from tests.parity.replays.masactrl import replay_masactrl
from tests.parity.replays.metrics import replay_metrics
from tests.parity.replays.negative_prompt import replay_negative_prompt_inversion, replay_proximal_npi
from tests.parity.replays.noise_map_guidance import replay_noise_map_guidance
from tests.parity.replays.noise_maps import replay_cycle_diffusion, replay_ddpm_inversion
from tests.parity.replays.noise_space import replay_noise_space_2d
from tests.parity.replays.null_text import replay_null_text_inversion
from tests.parity.replays.pix2pix_zero import replay_pix2pix_zero
from tests.parity.replays.plug_and_play import replay_plug_and_play
from tests.parity.replays.prompt_to_prompt import replay_prompt_to_prompt
from tests.parity.replays.sdedit import replay_sdedit
from tests.parity.replays.sega import replay_sega

REPLAYS: Mapping[str, Callable[[Case, Path], Mapping[str, Any]]] = {
    "cycle_diffusion": replay_cycle_diffusion,
    "ddim": replay_ddim,
    "ddpm_inversion": replay_ddpm_inversion,
    "diffedit": replay_diffedit,
    "direct_inversion": replay_direct_inversion,
    "flowalign": replay_flowalign,
    "flowedit_flux": replay_flowedit,
    "flowedit_sd3": replay_flowedit,
    "infedit": replay_infedit,
    "adaln_invariance": replay_two_stage,
    "euler_flow": replay_solver,
    "fireflow": replay_solver,
    "fireflow_flux": replay_solver,
    "flow_inversion_analytic": replay_flow_inversion_analytic,
    "flow_two_stage": replay_two_stage,
    "rf_edit_flux": replay_solver,
    "rf_inversion_flux": replay_rf_inversion,
    "rf_solver": replay_solver,
    "ledits": replay_ledits,
    "ledits_pp": replay_ledits_pp,
    "ledits_pp_repo": replay_ledits_pp_repo,
    "masactrl": replay_masactrl,
    "metrics": replay_metrics,
    "negative_prompt_inversion": replay_negative_prompt_inversion,
    "noise_map_guidance": replay_noise_map_guidance,
    "noise_space_2d": replay_noise_space_2d,
    "null_text_inversion": replay_null_text_inversion,
    "pix2pix-zero": replay_pix2pix_zero,
    "plug-and-play": replay_plug_and_play,
    "proximal_npi": replay_proximal_npi,
    "prompt_to_prompt": replay_prompt_to_prompt,
    "sdedit": replay_sdedit,
    "sega": replay_sega,
    "uniedit_flow": replay_uniedit_flow,
}
