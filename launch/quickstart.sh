#!/usr/bin/env bash
# From nothing to a trained FG-CLIP on a CPU, in minutes: renders a data set, trains both stages, evaluates
# each, draws a heat map, and exports the model to PyTorch format. Run again, it does only what is missing.
#
#   bash launch/quickstart.sh
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

bash launch/setup.sh
python=.venv/bin/python
runs=runs/quickstart
begin=$SECONDS
say() { echo; echo "== $* [$((SECONDS - begin)) s]"; }

say "1/6 rendering scenes"
$python -m fgclip_jax.prepare scenes --output data/scenes

say "2/6 stage 1: whole images against short and long captions"
$python -m fgclip_jax.main --config=configs/quickstart.py:stage1 --workdir=$runs/stage1

say "3/6 stage 2: regions and hard negatives join in"
$python -m fgclip_jax.main --config=configs/quickstart.py:stage2 --workdir=$runs/stage2

say "4/6 evaluating both on scenes whose attribute combinations were never trained"
for stage in 1 2; do
  $python -m fgclip_jax.evaluate --model $runs/stage$stage --data data/scenes --name "stage $stage" \
    --output $runs/stage$stage.json
done

say "5/6 a heat map of a region's caption over a scene"
$python -m fgclip_jax.show --model $runs/stage2 --data data/scenes --split validation --index 0 --output $runs/heat_map.png

say "6/6 exporting to PyTorch format"
$python -m fgclip_jax.convert $runs/stage2 $runs/pytorch --to pytorch --overwrite

say "what stage 2 added (%, on combinations never trained)"
$python -m fgclip_jax.evaluate --compare $runs/stage1.json $runs/stage2.json
cat <<END

The picture: $runs/heat_map.png      The curves: tensorboard --logdir $runs
Try next:
  another caption   $python -m fgclip_jax.show --model $runs/stage2 --data data/scenes --index 3 --text "a small red striped star" --output heat.png
  your own data     $python -m fgclip_jax.prepare pairs --help
  real weights      $python -m fgclip_jax.convert --help
END
