"""A small GPT for text as a row of tokens."""

from jaxtyping import Float, Int
from torch import Tensor, nn

from scrimp.train.models.transformer import blocks, rotary_table


class GPT(nn.Module):
    """A causal transformer: token embedding, pre-norm blocks with rotary positions, a final norm, a linear head.

    About ``12 * depth * width ** 2`` weights. ``tied`` lets the head use the embedding's weights.

    Source: the block of GPT-2 without biases; rotary positions of arXiv 2104.09864.
    """

    rotary: Tensor

    def __init__(
        self,
        *,
        vocab_size: int,
        context_length: int,
        depth: int = 5,
        width: int = 128,
        num_heads: int = 4,
        dropout: float = 0.0,
        tied: bool = False,
    ) -> None:
        super().__init__()
        self.context_length = context_length
        self.embed = nn.Embedding(vocab_size, width)
        self.blocks = blocks(depth, width, num_heads, causal=True, dropout=dropout)
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, vocab_size, bias=False)
        nn.init.normal_(self.embed.weight, std=0.02)
        nn.init.normal_(self.head.weight, std=0.02)
        if tied:
            self.head.weight = self.embed.weight
        self.register_buffer("rotary", rotary_table(context_length, width // num_heads), persistent=False)

    def forward(self, tokens: Int[Tensor, "batch length"]) -> Float[Tensor, "batch length vocab_size"]:
        """Logits of the next token at every position, from that position and those before it.

        ``length`` is at most ``context_length``.
        """
        x = self.embed(tokens)
        table = self.rotary[:, : tokens.shape[1]]
        for block in self.blocks:
            x = block(x, table)
        logits: Tensor = self.head(self.norm(x))
        return logits
