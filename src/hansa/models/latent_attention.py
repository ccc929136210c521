"""Multi-head latent attention: queries, keys and values of all heads are made from narrow latents of the token.

    c = norm(x W_down);  k_h = [c W_up,h , rotated k_rope],  v_h = c W_up,h;   q_h = [q_plain,h , rotated q_rope,h]
    scores = q_h · k_h / sqrt(plain + rope); the rotated part of the key is one for all heads

Source: DeepSeek-AI 2024, "DeepSeek-V2", section 2.1 and appendix C. Computed as written: nothing is cached here, so the absorbed
form that saves cache memory in generation brings nothing.

Shape suffixes: B samples, T tokens, D model width, H heads, d width of a head.
"""

import torch
from torch import Tensor

from hansa.models.attention import Mixing
from hansa.models.config import Latent, ModelConfig
from hansa.models.norms import Norm
from hansa.models.positions import rope_frequencies, rope_size, rotate, score_size
from hansa.models.tape import Tape

_EPSILON = (
    1e-6  # of the latents' norms: the published models take it whatever the epsilon of the blocks' norms
)


class LatentAttention(Mixing):
    """Attention of DeepSeek-V2 and V3 among the tokens of a text."""

    def __init__(self, name: str, config: ModelConfig, sizes: Latent, layer: int) -> None:
        super().__init__(name, config, layer)
        self.sizes = sizes
        head = sizes.plain_dim + sizes.rope_dim
        self.softmax_scale: float = head**-0.5 * score_size(config.yarn)
        if sizes.query_rank:
            self.add_linear("query_down", config.dim, sizes.query_rank)
            self.query_norm = Norm(sizes.query_rank, _EPSILON, gain=True)
            self.add_linear("query_up", sizes.query_rank, self.heads * head)
        else:
            self.add_linear("query", config.dim, self.heads * head)
        self.add_linear("latent_down", config.dim, sizes.kv_rank + sizes.rope_dim)
        self.latent_norm = Norm(sizes.kv_rank, _EPSILON, gain=True)
        self.add_linear("latent_up", sizes.kv_rank, self.heads * (sizes.plain_dim + sizes.value_dim))
        self.add_linear("output", self.heads * sizes.value_dim, config.dim)
        self.frequencies = rope_frequencies(sizes.rope_dim, config.rope_base, config.yarn)

    def forward(self, x_BTD: Tensor, queries: int, tape: Tape | None) -> Tensor:
        """Attend from every token: (B, T, D) -> (B, T, D); a text has no use for `queries` below T."""
        sizes = self.sizes
        if sizes.query_rank:
            latent = self.query_norm(self.get_submodule("query_down")(x_BTD, tape=tape))
            q_BTD = self.get_submodule("query_up")(latent, tape=tape)
        else:
            q_BTD = self.get_submodule("query")(x_BTD, tape=tape)
        q_BHTd = q_BTD.unflatten(2, (self.heads, -1)).transpose(1, 2)
        q_plain, q_rope = q_BHTd.split([sizes.plain_dim, sizes.rope_dim], dim=3)

        down = self.get_submodule("latent_down")(x_BTD, tape=tape)
        latent, k_rope = down.split([sizes.kv_rank, sizes.rope_dim], dim=2)
        up = self.get_submodule("latent_up")(self.latent_norm(latent), tape=tape)
        up_BHTd = up.unflatten(2, (self.heads, -1)).transpose(1, 2)
        k_plain, value = up_BHTd.split([sizes.plain_dim, sizes.value_dim], dim=3)

        size = rope_size(self.config.yarn)
        q_rope = rotate(q_rope, self.frequencies, size, interleaved=True)
        k_rope = rotate(k_rope.unsqueeze(1), self.frequencies, size, interleaved=True)
        query = torch.cat([q_plain, q_rope], dim=3)
        key = torch.cat([k_plain, k_rope.expand(-1, self.heads, -1, -1)], dim=3)
        output: Tensor = self.get_submodule("output")(
            self.mix(query, key, value, self.softmax_scale), tape=tape
        )
        return output
