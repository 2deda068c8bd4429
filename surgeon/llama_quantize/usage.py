"""What `surgeon quantize --help` says."""

from __future__ import annotations

from surgeon.plan.file_types import FILE_TYPES

SYNTAX = "surgeon quantize [options] INPUT.gguf [OUTPUT.gguf] TYPE [threads]"
_OPTIONS = """

Options of llama-quantize (all before INPUT):
  --allow-requantize           quantize tensors again that are quantized already
  --leave-output-tensor        copy output.weight as it is
  --pure                       no mix: every tensor that can be quantized gets the base type
  --imatrix F                  importance matrix, GGUF or .dat
  --include-weights TEXT       use only imatrix entries whose name contains TEXT (repeatable)
  --exclude-weights TEXT       leave out imatrix entries whose name contains TEXT (repeatable)
  --output-tensor-type T       type of output.weight
  --token-embedding-type T     type of token_embd.weight
  --tensor-type RE=T           type of tensors whose name matches (repeatable, the first match wins)
  --tensor-type-file F         such rules from a file, separated by blanks
  --prune-layers L0,L1,...     leave out these layers; without --compat also 3-5
  --keep-split                 write as many shards as the input has
  --override-kv KEY=TYPE:VALUE set metadata; TYPE is int, float, bool or str (repeatable)
  --dry-run                    print types and sizes; write nothing
  --max-buffer-size MiB        memory for rows in work (default 256)

Options of our own:
  --set KEY=VALUE              set metadata, of the type that the key has (repeatable)
  --delete-key KEY             leave a metadata key out (repeatable)
  --chat-template-file F       set tokenizer.chat_template to the text in F
  --json                       one JSON object on stdout: tensors, total_bytes, bpw
  --recipe F                   begin with the plan in F; TYPE may then be left out
  --compat                     llama-quantize's bytes to the last one, its defects included
  --moments F                  second moments (surgeon imatrix --moments): the feedback encoder, same types and sizes
  --feedback-rounds N          rounds of better scales and codes in it (default 1)
  --shrink B                   of the moments towards their diagonal, 0 to 1 (default: chosen for each input)
  --save-moments F             also save the moments renumbered as the layers are
  --hide-imatrix               keep the imatrix's path and data set out of the metadata
  --save-imatrix F             also save the imatrix without the pruned layers and experts
  --prune-experts N|P%         leave out N (or P %) experts in every layer, the least salient in the imatrix
  --experts-by WHAT            choose them by saliency (default) or calls
  --heal F                     take refitted matrices from heal file F (surgeon heal), or heal on text F first
  --heal-tokens N              tokens to fit on for each column of ffn_down, where F is a text (default 30)
  --split-max-size N(M|G)      write shards of at most N megabytes or gigabytes of tensor data
  --i-know                     prune an architecture although not everything about it could be checked
  --scheduler ADDRESS          write over the workers of this Dask scheduler (extra `fleet`; none: not)
  --overwrite                  replace an existing OUTPUT
  --resume                     continue a run that was cut off

TYPE (name or number):
"""


def usage() -> str:
    """Options and TYPEs, as `surgeon quantize --help` prints them."""
    rows = [f"  {kind.number:>3}  {kind.name:<10} {kind.description}" for kind in FILE_TYPES.values() if kind.base]
    return f"usage: {SYNTAX}{_OPTIONS}" + "\n".join([*rows, f"       {'COPY':<10} {FILE_TYPES['COPY'].description}"])
