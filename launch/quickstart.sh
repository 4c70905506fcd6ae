#!/usr/bin/env bash
# From nothing to a trained FG-CLIP on a CPU, in minutes: renders a data set, trains both stages, evaluates
# each, draws a heat map, and exports the model to PyTorch format. Run again, it does only what is missing.
#
#   bash launch/quickstart.sh            an FG-CLIP, on square pictures
#   bash launch/quickstart.sh fgclip2    an FG-CLIP 2, on pictures of several shapes
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

case "${1:-fgclip}" in
  fgclip) prefix="" data=data/scenes shapes=square ;;
  fgclip2) prefix=fgclip2_ data=data/scenes_mixed shapes=mixed ;;
  *)
    echo "launch/quickstart.sh takes nothing or fgclip2, got '$1'" >&2
    exit 2
    ;;
esac
bash launch/setup.sh
python=.venv/bin/python
runs=runs/quickstart
begin=$SECONDS
say() { echo; echo "== $* [$((SECONDS - begin)) s]"; }

say "1/6 rendering scenes"
$python -m fgclip_jax.prepare scenes --output $data --shapes $shapes

say "2/6 stage 1: whole images against short and long captions"
$python -m fgclip_jax.main --config=configs/quickstart.py:${prefix}stage1 --workdir=$runs/${prefix}stage1

say "3/6 stage 2: regions and hard negatives join in"
$python -m fgclip_jax.main --config=configs/quickstart.py:${prefix}stage2 --workdir=$runs/${prefix}stage2

say "4/6 evaluating both on scenes whose attribute combinations were never trained"
for stage in 1 2; do
  $python -m fgclip_jax.evaluate --model $runs/${prefix}stage$stage --data $data --name "stage $stage" \
    --output $runs/${prefix}stage$stage.json
done

say "5/6 a heat map of a region's caption over a scene"
$python -m fgclip_jax.show --model $runs/${prefix}stage2 --data $data --split validation --index 0 \
  --output $runs/${prefix}heat_map.png

say "6/6 exporting to PyTorch format"
$python -m fgclip_jax.convert $runs/${prefix}stage2 $runs/${prefix}pytorch --to pytorch --overwrite

say "what stage 2 added (%, on combinations never trained)"
$python -m fgclip_jax.evaluate --compare $runs/${prefix}stage1.json $runs/${prefix}stage2.json
cat <<END

The picture: $runs/${prefix}heat_map.png      The curves: tensorboard --logdir $runs
Try next:
  another caption   $python -m fgclip_jax.show --model $runs/${prefix}stage2 --data $data --index 3 --text "a small red striped star" --output heat.png
  your own data     $python -m fgclip_jax.prepare pairs --help
  real weights      $python -m fgclip_jax.convert --help
END
