#!/usr/bin/env bash
# The command on bad input and bad luck: each a clear message, the right exit status, within seconds; checkpoints stay whole.
set -u
foldscale=${FOLDSCALE_BUILD:?}/foldscale
source_dir=${FOLDSCALE_SOURCE:?}
examples=$source_dir/data/examples
out=$(mktemp -d) || exit 1
trap 'rm -rf "$out"' EXIT
cd "$out" || exit 1
failed=0
fail() {
    echo "FAIL $1"
    failed=1
}
# expect NAME STATUS PATTERN COMMAND...: runs it for at most 60 s; checks its status and that its output has the pattern
expect() {
    local name=$1 wanted=$2 pattern=$3 status
    shift 3
    timeout 60 "$@" >log 2>&1
    status=$?
    if [ "$status" -ne "$wanted" ] || ! grep -qE -- "$pattern" log; then
        fail "$name: status $status (expected $wanted), expected \"$pattern\" in:"
        head -n 20 log
    else
        echo "PASS $name"
    fi
}

cat >good.yaml <<EOF
model: {preset: tiny}
data:
  mmcif: $examples/mmcif
  alignments: $examples/alignments
  chains: [1ubq_A, 1a7g_E]
  workers: 1
train: {steps: 4, recycling: 1, checkpoint_every: 2}
parallel: {threads: 1}
EOF
write() { # NAME SED-SCRIPT: a variant of good.yaml
    sed "$2" good.yaml >"$1"
}

# --- wrong usage: 2 -----------------------------------------------------------------------------------------------------
expect "no subcommand" 2 "usage: foldscale" "$foldscale"
expect "unknown subcommand" 2 'did you mean "train"' "$foldscale" trian
expect "unknown option" 2 'did you mean --resume' "$foldscale" train good.yaml --resum
expect "missing operand" 2 "missing operand" "$foldscale" train
expect "malformed number" 2 "whole number from 1" "$foldscale" train good.yaml --ranks two
expect "bad override" 2 'unknown key "stepz"' "$foldscale" train good.yaml --set train.stepz=3
expect "override out of range" 2 "out of range" "$foldscale" train good.yaml --set train.steps=-3
expect "unknown stage" 2 "expected record, fuse" "$foldscale" explain good.yaml --stage cook
expect "unknown machine" 2 "unknown machine" "$foldscale" explain good.yaml --machine cray1
for command in train eval data sweep calibrate fit predict simulate validate advise report explain export; do
    expect "$command --help" 0 "example:" "$foldscale" $command --help
done

# --- experiment files: 1, with file and line -----------------------------------------------------------------------------
write bad.yaml 's/  workers: 1/  wrokers: 1/'
expect "unknown key" 1 'bad.yaml:6: unknown key "wrokers" in data \(did you mean "workers"' "$foldscale" train bad.yaml
write bad.yaml 's/  workers: 1/  workers: many/'
expect "not a number" 1 'bad.yaml:6: data.workers is not a whole number' "$foldscale" train bad.yaml
write bad.yaml 's/preset: tiny/preset: huge/'
expect "unknown preset" 1 "bad.yaml:1: .*huge" "$foldscale" train bad.yaml
printf 'train: {steps: 4\nmodel: [' >bad.yaml
expect "not YAML" 1 "bad.yaml:[0-9]+: not valid YAML" "$foldscale" train bad.yaml
printf 'train:\n  steps: 4\n  steps: 5\n' >bad.yaml
expect "repeated key" 1 "bad.yaml:3: key .steps. is given twice" "$foldscale" train bad.yaml
printf 'a: &x [*x]\n' >bad.yaml
expect "alias" 1 "bad.yaml:1" "$foldscale" train bad.yaml
head -c 3000 /dev/urandom >bad.yaml
expect "binary file" 1 "bad.yaml" "$foldscale" train bad.yaml
expect "missing experiment" 1 "none.yaml: cannot open" "$foldscale" train none.yaml
write bad.yaml 's/threads: 1/threads: 1, ranks: 3, dap: 2/'
expect "DAP that does not divide the ranks" 1 "bad.yaml:8: parallel.dap does not divide" "$foldscale" train bad.yaml
write bad.yaml 's/threads: 1/threads: 1, dap: 3/'
expect "DAP of 3" 1 "bad.yaml:8: parallel.dap is out of range" "$foldscale" train bad.yaml
expect "a size below the model's" 2 'set model.n_res=1: model.n_res is out of range \(found 1, expected 2 to 16384' "$foldscale" train good.yaml --set model.n_res=1
weights=()
for loss in fape chi distogram masked_msa plddt resolved violation; do weights+=(--set model.w_$loss=0); done
expect "no loss at all" 2 "set model.w_fape=0: .* weights of all other losses are 0" "$foldscale" train good.yaml "${weights[@]}"
mkfifo fifo
expect "experiment from a fifo that nobody writes" 1 "fifo: not a regular file" "$foldscale" train fifo
expect "runs from a fifo" 1 "fifo: not a regular file" "$foldscale" fit fifo --experiment good.yaml
expect "machine from a fifo" 1 "fifo: not a regular file" "$foldscale" explain good.yaml --machine ./fifo
expect "checkpoint from a fifo" 1 "fifo: not a regular file" "$foldscale" eval fifo --experiment good.yaml
expect "pack from a fifo" 1 "fifo: not a regular file" "$foldscale" train good.yaml --set data.pack=fifo --out t0
expect "experiment from a pipe" 0 "optimizer" "$foldscale" explain <(sleep 0.2; cat good.yaml)
expect "more ranks than the crop can be split into" 1 "extent 36, which cannot be split over dap = 8" "$foldscale" train good.yaml --ranks 8 --dap 8 --set model.n_res=36

# --- data ------------------------------------------------------------------------------------------------------------------
write bad.yaml "s#mmcif: .*#mmcif: $out/nowhere#"
expect "missing folder" 1 "nowhere" "$foldscale" train bad.yaml
mkdir -p cif msa/1ubq_A
head -c 60000 "$examples/mmcif/1ubq.cif" >cif/1ubq.cif
write bad.yaml "s#mmcif: .*#mmcif: $out/cif#; s#chains: .*#chains: [1ubq_A]#"
expect "truncated mmCIF" 1 "1ubq.cif:[0-9]+: " "$foldscale" train bad.yaml --out t1
cp "$examples/alignments/1ubq_A/homologs.a3m" msa/1ubq_A/homologs.a3m
printf '>short\nMQIF\n' >>msa/1ubq_A/homologs.a3m
write bad.yaml "s#alignments: .*#alignments: $out/msa#; s#chains: .*#chains: [1ubq_A]#"
expect "a3m with unequal rows" 1 "homologs.a3m:[0-9]+: " "$foldscale" train bad.yaml --out t2
write bad.yaml "s#chains: .*#chains: [9xyz_A]#"
expect "unknown chain" 1 "9xyz" "$foldscale" train bad.yaml --out t3
printf 'run_id,ranks\na,1\n' >runs.csv
expect "CSV with a missing column" 1 "runs.csv.*(column|missing)" "$foldscale" fit runs.csv --experiment good.yaml
expect "missing CSV" 1 "none.csv" "$foldscale" fit none.csv --experiment good.yaml

# --- validation: found from any folder, sets and scores printed -------------------------------------------------------------
expect "validate" 0 "published +[0-9]+ held-out rows: mean error" "$foldscale" validate --out validation.csv
grep -q '^other codes,.*,fitted,' validation.csv || fail "validation.csv does not say which rows were fitted"
expect "validate without measurements" 1 "op_table.csv" "$foldscale" validate --own .

# --- a study made by hand: fit, what-ifs in one table, time to train ---------------------------------------------------------
mkdir -p study
{
    echo "run_id,experiment,backend,device,ranks,dp,dap,nonblocking_loader,gemm_batching,fused_attention,fused_layernorm,fused_pointwise,fused_optimizer,bf16,checkpoint,comm_overlap,overlap_clip,cuda_graph,async_eval,eval_cache,samples,step_s_mean,step_s_median,step_s_p05,step_s_p95,data_wait_s,forward_nograd_s,forward_s,backward_s,comm_exposed_s,optimizer_s,eval_s,other_s,samples_per_s,peak_bytes,model_flops,mfu,wire_bytes,data_wait_fraction,provenance"
    for run in "1 1.00" "1 1.01" "2 1.10" "2 1.12"; do
        set -- $run
        echo "r$1_$2,good,cpu,d,$1,$1,1,on,off,off,off,off,off,off,none,off,off,off,off,off,4,$2,$2,$2,$2,,,,,,,,,1,1e9,1e9,,0,0,000000000000$1${2/./}"
    done
} >study/runs.csv
expect "fit of four runs" 0 "4 runs" "$foldscale" fit study/runs.csv --experiment good.yaml
for form in amdahl log linear usl anchored 'universal scalability law'; do
    expect "fit of the form $form" 0 "4 runs" "$foldscale" fit study/runs.csv --experiment good.yaml --form "$form" --draws 50 --out form.json
done
expect "unknown form" 2 'unknown form "lgo" \(expected one of amdahl, log, linear, usl, anchored\)' "$foldscale" fit study/runs.csv --form lgo
mkdir -p dir.2/sub
expect "fit beside a dot" 0 "4 runs" "$foldscale" fit study/runs.csv --experiment good.yaml --form amdahl --out dir.2/sub/myfit
[ -e dir.2/sub/myfit_anchored.json ] || fail "the anchored fit is not beside the other"
expect "another machine from the study's fit" 0 "predictions" "$foldscale" predict study --experiment good.yaml --machine h100_sxm --gpus 8 --dap 1 --out own.csv
expect "another machine from another fit" 0 "predictions" "$foldscale" predict study --experiment good.yaml --machine h100_sxm --gpus 8 --dap 1 \
    --fit dir.2/sub/myfit --out other.csv
cmp own.csv other.csv || fail "--fit leaves out the anchored fit beside it"
sed 's/,d,2,2,1,/,d,16,16,1,/' study/runs.csv >wide.csv
expect "runs on more ranks than the machine has" 1 'wide.csv:4: 16 x 1 ranks do not fit on h200x2 \(2 devices\)' "$foldscale" fit wide.csv \
    --experiment good.yaml --machine h200x2
expect "what-ifs" 0 "3 predictions" "$foldscale" predict study --experiment good.yaml --machine h100_sxm --gpus 8 --dap 1 \
    --what-if switches.bf16=on --what-if model.n_res=32,switches.bf16=on --out what.csv
[ "$(grep -c 'what if' what.csv)" = 2 ] || fail "what.csv does not say which rows are what-ifs"
grep -q 'what if switches.bf16=on; another machine.*switches that no run had' what.csv || fail "what-ifs are not flagged"
expect "unknown key in a what-if" 2 'unknown key "warp"' "$foldscale" predict study --experiment good.yaml --gpus 2 --what-if warp=9
expect "time to train" 0 "verdict,twice the GPUs train [0-9.]+ times as fast: more GPUs" "$foldscale" simulate study \
    --experiment good.yaml --machine h100_sxm --gpus 8 --steps 20 --to-target --startup-s 5
expect "partition that needs quotes" 2 'partition "a b;rm" cannot stand in a job script' "$foldscale" sweep good.yaml --slurm --partition 'a b;rm' --out jobs
expect "folder that needs quotes" 2 'jobs%j" cannot stand in a job script' "$foldscale" sweep good.yaml --slurm --out jobs%j
expect "folder below one that needs quotes" 2 'a b/c" cannot stand in a job script' "$foldscale" sweep good.yaml --slurm --out "a b/c"
ls -d jobs* a* 2>/dev/null && fail "a folder was made all the same"
expect "job scripts" 0 "job scripts" "$foldscale" sweep good.yaml --slurm --partition gpu-a.1,gpu_b --out jobs
expect "advice" 0 "next measurement" "$foldscale" advise study --experiment good.yaml --machine h100_sxm --deadline 24 --budget 1e6
expect "a degree that the model cannot be split over" 0 "note: DAP 8 is left out: .*extent 4, which cannot be split" "$foldscale" \
    predict study --experiment good.yaml --set model.n_extra=4 --machine h100_sxm --gpus 8 --dap 1,8 --out what.csv
grep -q '^1 predictions (what does not divide or fit left out)' log && [ "$(wc -l <what.csv)" = 2 ] ||
    fail "the other degree was not predicted"
expect "no degree that the model can be split over" 2 "nothing to predict" "$foldscale" predict study --experiment good.yaml \
    --set model.n_extra=4 --machine h100_sxm --gpus 8 --dap 8 --out none.csv
expect "advice without that degree" 0 "DAP 8 is left out" "$foldscale" advise study --experiment good.yaml \
    --set model.n_extra=4 --set predict.gpus=[8] --set predict.dap=[1,8] --machine h100_sxm --deadline 24

# --- outputs never overwrite inputs or files of another kind ------------------------------------------------------------------
cp -r study study_kept
predict=("$foldscale" predict study --experiment good.yaml --machine h100_sxm --gpus 8 --dap 1 --out)
expect "predictions over the runs" 2 "predict: --out is the input study/runs.csv" "${predict[@]}" study/runs.csv
expect "predictions over the fit" 2 "predict: --out is the input study/fit.json" "${predict[@]}" ./study/../study/fit.json
expect "predictions over the experiment" 2 "predict: --out is the input good.yaml" "${predict[@]}" good.yaml
expect "a simulation over the runs" 2 "simulate: --out is the input study/runs.csv" "$foldscale" simulate study \
    --experiment good.yaml --gpus 8 --steps 20 --out study/runs.csv
expect "a fit over the runs" 2 "fit: --out is the input study/runs.csv" "$foldscale" fit study/runs.csv --experiment good.yaml --out study/runs.csv
echo "my thesis" >thesis.txt
expect "a fit over another file" 1 "thesis.txt: not replaced" "$foldscale" fit study/runs.csv --experiment good.yaml --out thesis.txt
for beside in .txt _anchored.json; do
    echo "my thesis" >new$beside
    expect "a fit with another file beside it" 1 "new$beside: not replaced" "$foldscale" fit study/runs.csv --experiment good.yaml --out new
    [ "$(cat new*)" = "my thesis" ] || fail "a refused fit wrote something"
    rm new*
done
expect "predictions over another file" 1 "thesis.txt: not replaced" "${predict[@]}" thesis.txt
expect "a validation over another file" 1 "thesis.txt: not replaced" "$foldscale" validate --out thesis.txt
grep -q '^my thesis$' thesis.txt && diff -r study study_kept || fail "a refused output changed a file"
expect "a folder as output" 1 "study: cannot write: a folder, not a file" "${predict[@]}" study
ln -s there.csv link.csv
expect "a link is followed" 0 "1 predictions" "${predict[@]}" link.csv
expect "and replaced behind it" 0 "1 predictions" "${predict[@]}" link.csv
[ -L link.csv ] && grep -q '^machine,' there.csv || fail "the link was replaced"
ln -s /proc/self/fd/1 stdout # as /dev/stdout is
expect "standard output" 0 "^machine,gpus" "${predict[@]}" stdout
grep -q "^1 predictions" log || fail "standard output was replaced"
mkfifo pipe
timeout 60 cat pipe >piped &
expect "a pipe" 0 "1 predictions" "${predict[@]}" pipe
[ -p pipe ] || fail "the pipe was replaced"
wait $! && grep -q '^machine,' piped || fail "nothing came out of the pipe"
for rows in 1 2; do
    expect "predictions behind $((rows - 1)) rows" 0 "1 predictions" "${predict[@]}" appended.csv --append
    [ "$(wc -l <appended.csv)" = $((rows + 1)) ] || fail "appended.csv is not a header and $rows rows"
done
expect "--append to a pipe that was handed over" 0 "^machine,gpus" bash -c 'set -o pipefail; "$@" /dev/fd/1 --append | cat' - "${predict[@]}"
expect "--append to a process substitution" 0 "^machine,gpus" bash -c '"$@" >(cat) --append && wait $!' - "${predict[@]}"
expect "--append to standard output" 0 "^h100_sxm,8" "${predict[@]}" stdout --append
expect "--append to a device" 0 "1 predictions" "${predict[@]}" /dev/null --append
expect "--append to a fifo" 1 "pipe: cannot write: a fifo, not a file" "${predict[@]}" pipe --append
fit=("$foldscale" fit study/runs.csv --experiment good.yaml --form amdahl --draws 50 --out)
expect "a fit into a pipe" 0 '"format":.*"foldscale fit"' bash -c 'set -o pipefail; "$@" /dev/fd/1 | cat' - "${fit[@]}"
grep -q "note: /dev/fd/1 is not a file: no diagnostics and no anchored fit" log && grep -q "^4 runs" log || fail "it is not said what is left out"
expect "a fit to standard output" 0 '"format":.*"foldscale fit"' "${fit[@]}" stdout
ls stdout?* 2>/dev/null && fail "files beside standard output"
"${fit[@]}" stdout >piped.json 2>said || fail "a fit to standard output alone"
expect "which is JSON and nothing else" 0 "1 predictions" "${predict[@]}" piped.csv --fit piped.json
grep -q "^form:" said && grep -q "^4 runs" said || fail "diagnostics of a fit on standard output are not on standard error"
sed 's/,good,cpu,d,2,/,other,cpu,d,2,/' study/runs.csv >mixed.csv
expect "runs of two models" 1 'mixed.csv:4: experiment "other", but mixed.csv:2 has "good"' "$foldscale" fit mixed.csv --experiment good.yaml

# --- a sweep that goes on: with more points of its study, not with another experiment ------------------------------------------
sweep() { # ARGUMENT...
    "$foldscale" sweep good.yaml --out "${folder:-swept}" --set study.switches=[fused_attention] --set study.ablations=[] \
        --set study.repeats=1 --set study.steps=2 "$@"
}
export -f sweep
export foldscale
expect "sweep" 0 "1 points -> swept/runs.csv" bash -c sweep
other='points/n1_dap1_s.*_r0/run.json: the study here was measured with model.c_m 32, asked for 64; take another --out'
for more in "" "--set study.repeats=2" --collect --slurm; do
    expect "going on with another model $more" 2 "$other" bash -c "sweep --set model.c_m=64 $more"
done
expect "a study in use" 1 "swept: another foldscale is writing here" flock swept bash -c sweep
expect "going on with more points" 0 "3 points" bash -c 'sweep --set study.repeats=3 --set study.ranks=[1]'
[ "$(wc -l <swept/runs.csv)" = 4 ] || fail "swept/runs.csv has not three rows"
tail -n 1 swept/runs.csv >last && sed -i '$d' swept/runs.csv
sed -i 's/"c_m":\t32/"c_m":\t64/' "swept/points/$(cut -d, -f1 last)/run.json"
expect "collecting a point of another model" 2 "model.c_m 64, asked for 32" bash -c 'sweep --set study.repeats=3 --collect'
[ "$(wc -l <swept/runs.csv)" = 3 ] || fail "a point of another model was collected"
expect "fit with the experiment of run.json" 0 "2 runs" "$foldscale" fit swept/runs.csv
[ -e swept/experiment.yaml ] && fail "fit wrote an experiment into the study"

# jobs of a sweep, with an sbatch and an srun that run them at once; one ends before its last step
mkdir bin
printf '#!/bin/bash\necho "submitted $1"\nexec bash "$1"\n' >bin/sbatch
printf '#!/bin/bash\n[ "$1 $2" = "--mpi=pmix --kill-on-bad-exit=1" ] || exit 9\nshift 2\nexec "$@"\n' >bin/srun
chmod +x bin/*
ln -s "$examples/mmcif" relative
jobs() { # ARGUMENT...
    folder=later sweep --set data.mmcif=relative --set study.repeats=2 --set study.ranks=[1] "$@"
}
export -f jobs
submit=(env "PATH=$out/bin:$PATH" later/slurm/submit.sh) # it works in its own folder
expect "scripts of two jobs" 0 "2 job scripts" bash -c 'jobs --slurm'
expect "two jobs" 0 "submitted n1.*_r1" "${submit[@]}"
sed -i '$d' later/points/*_r0/steps.csv
sed -i 's/"step_num":2/"step_num":1/' later/points/*_r0/mlperf.log
expect "collecting beside an incomplete point" 0 "^1 rows added, 1 points have not run or are not complete" bash -c 'jobs --collect'
grep -q '_r0/steps.csv: ' log || fail "what is not complete is not named"
# an squeue that lists what the file says, in the format and the states it is asked for
printf '#!/bin/bash\n[[ "$*" == *" -t PD,R,S,CG,CF "*"-o %%j %%Z" ]] && cat "%s/queue"\n' "$out" >bin/squeue
chmod +x bin/squeue
expect "a queue that cannot be asked" 1 "queue: No such file" "${submit[@]}"
point=$(basename later/points/*_r0)
echo "$point $(realpath later)/slurm" >queue
expect "a point that is queued" 0 "^$point: left out, queued or running" "${submit[@]}"
grep -q ^submitted log && fail "a queued point was submitted again"
grep -q "^#SBATCH --chdir=$(realpath later)/slurm$" "later/slurm/$point.sh" || fail "a job is not known by its folder"
printf '%s\n' "$point /elsewhere/slurm" "${point}1 $(realpath later)/slurm" >queue
expect "the incomplete point again" 0 "submitted n1.*_r0" "${submit[@]}"
[ "$(grep -c ^submitted log)" = 1 ] || fail "a complete point was submitted again"
expect "collecting it" 0 "^1 rows added, 0 points" bash -c 'jobs --collect'

# --- checkpoints: resume, damage, full disk, signals, a killed rank -----------------------------------------------------------
expect "four steps" 0 "4 steps" "$foldscale" train good.yaml --out whole
expect "two steps" 0 "2 steps" "$foldscale" train good.yaml --out parts --set train.steps=2
expect "two more" 0 "4 steps" "$foldscale" train good.yaml --out parts --resume
cmp -s <(cut -d, -f1-20 whole/losses.csv) <(cut -d, -f1-20 parts/losses.csv) || fail "resumed losses differ"
expect "scores over the checkpoint" 2 "eval: --csv is the input whole/ckpt_000004" "$foldscale" eval whole --csv whole/ckpt_000004.safetensors
cp whole/run.json run.json
expect "scores over another file" 1 "run.json: not replaced" "$foldscale" eval whole --csv whole/run.json
cmp -s run.json whole/run.json || fail "run.json was replaced"
expect "a simulation over the steps of a run" 1 "whole/steps.csv: not replaced: .*step,start_s," "$foldscale" simulate study \
    --experiment good.yaml --gpus 8 --steps 20 --out whole/steps.csv
bytes=$(($(stat -c %s whole/ckpt_000004.safetensors) * 8 / 10)) # the tensors; the header holds times
if cmp -s <(tail -c $bytes whole/ckpt_000004.safetensors) <(tail -c $bytes parts/ckpt_000004.safetensors); then
    echo "PASS resume is bit-identical"
else
    fail "resume is not bit-identical"
fi

# ops are timed per step: those without gradient run as often as steps.csv says, which is no whole number on average
expect "a run with its ops timed" 0 "5 steps" "$foldscale" train good.yaml --out profiled --profile --set train.steps=5
if awk -F, '
    function near(a, b) { return a >= b * 0.999999 && a <= b * 1.000001 }
    FNR == 1 { for (i = 1; i <= NF; i++) column[$i] = i; next }
    FILENAME ~ /steps/ { runs += $column["recycling"]; steps++; next }
    {
        calls = $column["calls"]; time = $column["time_s"]
        wanted = $column["stage"] == "forward_nograd" ? runs / steps : 1
        nograd += $column["stage"] == "forward_nograd"
        if (calls != wanted) { print $0 ": calls " calls " (expected " wanted ")"; bad = 1 }
        if (time > 0 && !near($column["flop_per_s"] * time, calls * $column["flops"])) { print $0 ": flop_per_s"; bad = 1 }
        if (time > 0 && !near($column["bytes_per_s"] * time, calls * $column["bytes"])) { print $0 ": bytes_per_s"; bad = 1 }
    }
    END { exit bad || !nograd || runs % steps == 0 }' profiled/steps.csv profiled/ops.csv >log; then
    echo "PASS calls per step and achieved rates"
else
    fail "ops.csv: $(head -n 3 log)"
fi

# the report sets what was profiled beside what the prices say of it
cp -r study reported && mkdir -p reported/machine/profile && cp profiled/ops.csv reported/machine/profile
expect "a report with profiled ops" 0 "report.html" "$foldscale" report reported --experiment good.yaml
awk -F, 'NR > 1 { ops++; bad += !($2 > 0 && $3 > 0) } END { exit bad || ops < 100 }' reported/report/ops_predicted.csv ||
    fail "ops_predicted.csv: $(head -n 3 reported/report/ops_predicted.csv)"

# a run that is there already is lost neither to a new one nor to a start that fails
expect "a run in the way" 1 "parts: holds a run already .a checkpoint of step 4; expected --resume" \
    "$foldscale" train good.yaml --out parts --set train.steps=2
cp -r parts kept
expect "going on with another seed" 1 "saved data state has seed 1, this run has 9" \
    "$foldscale" train good.yaml --out parts --resume --set train.seed=9
expect "replacing by what cannot start" 1 "typo" "$foldscale" train good.yaml --out parts --replace --set data.mmcif=/typo
replacing=("$foldscale" train good.yaml --out parts --replace)
expect "replacing by a chain that is not in its file" 1 "has no protein chain B" "${replacing[@]}" --set data.chains=[1ubq_B]
expect "replacing by an entry that is not there" 1 "no structure of entry 9zzz" "${replacing[@]}" --set data.chains=[1ubq_A,9zzz_A]
expect "replacing by evaluations of no chain" 1 'no chain "9zzz_A"' "${replacing[@]}" --set eval.every=1 --set eval.chains=[9zzz_A] \
    --set switches.async_eval=on
expect "replacing on two ranks" 1 "has no protein chain B" "${replacing[@]}" --set data.chains=[1ubq_B] --ranks 2
if diff -r kept parts >/dev/null; then echo "PASS the run is as it was"; else fail "a start that failed changed the run"; fi
expect "a folder in use" 1 "parts: another foldscale is writing here" flock parts "$foldscale" train good.yaml --out parts --resume
expect "nothing left to do" 0 "4 steps, [0-9.]+ s" "$foldscale" train good.yaml --out parts --resume
expect "replacing" 0 "2 steps, loss" "$foldscale" train good.yaml --out kept --replace --set train.steps=2
[ -e kept/ckpt_000004.safetensors ] && fail "a checkpoint of the run that was replaced"
cp -r parts queued && mkdir queued/async_eval
for i in $(seq 100 164); do cp parts/ckpt_000004.safetensors queued/async_eval/ckpt_000$i.safetensors; done
expect "replacing a run that was killed while evaluations waited" 0 "2 steps, loss" "$foldscale" train good.yaml --out queued \
    --replace --set train.steps=2 --set eval.every=1 --set eval.chains=[1ubq_A] --set switches.async_eval=on
cp -r parts odd && rm odd/losses.csv && mkdir odd/losses.csv && cp -r odd odd_kept
expect "replacing what cannot be removed" 1 "losses.csv: a folder" "$foldscale" train good.yaml --out odd --replace
diff -r odd odd_kept >/dev/null || fail "a run was half removed"
mkdir tuned && cp -r parts tuned/profile
# every op of one block beside its floor, in a table and a file, on one rank and on two
expect "two measurements that exclude each other" 2 "--ops and --collectives" "$foldscale" calibrate good.yaml --ops --collectives
expect "the collectives of two ranks" 0 "^all_reduce +host +[0-9.]+ us \+ bytes that leave a rank / [0-9.e+]+ GB/s" "$foldscale" calibrate good.yaml --collectives --ranks 2 --out halves
[ "$(grep -c '^2,2,1,.*,host,' halves/collective_rates.csv)" = 4 ] || fail "collective_rates.csv: $(cat halves/collective_rates.csv)"
expect "the ops of a block" 0 "^ +[0-9.]+ +[0-9.]+ +[0-9.]+ .* softmax" "$foldscale" calibrate good.yaml --ops --out block
grep -qx block/block_ops.csv log && [ "$(grep -c 'of grad by place' log)" = 1 ] || fail "what the table of a block says"
[ "$(ls block)" = block_ops.csv ] || fail "calibrate --ops measured more than was asked for"
expect "the ops of a block on two ranks" 0 "dap 2" "$foldscale" calibrate good.yaml --ops --ranks 2 --out halves
grep -q '^nograd,.*,all_to_all,' halves/block_ops.csv || fail "no collectives among the ops of half a block"
for ops in block halves; do
    awk -F, 'NR == 1 { for (i = 1; i <= NF; i++) column[$i] = i; next }
        { rows++; if (!($column["time_s"] >= 0 && $column["floor_s"] + 0 >= 0)) bad = 1
          if (($column["floor_s"] == "") != ($column["kind"] ~ /^(all_|reduce_scatter|comm_)/)) bad = 1 # exchanges have none
          time += $column["time_s"]; floor += $column["floor_s"] }
        END { exit bad || rows < 50 || !(time > floor && floor > 0) }' $ops/block_ops.csv || fail "$ops/block_ops.csv"
done
expect "the ops of a block on three ranks" 2 "1, 2, 4 or 8 ranks" "$foldscale" calibrate good.yaml --ops --ranks 3 --out halves
echo "my notes" >halves/collective_rates.csv
expect "rates over another file" 1 "collective_rates.csv: not replaced" "$foldscale" calibrate good.yaml --collectives --ranks 2 --out halves
echo mine >block/block_ops.csv
expect "the ops of a block over another file" 1 "block_ops.csv: not replaced" "$foldscale" calibrate good.yaml --ops --out block
expect "a profile over a run" 1 "tuned/profile: holds a run" "$foldscale" calibrate good.yaml --out tuned
diff -r parts tuned/profile >/dev/null || fail "calibrate changed a run"
latin=$(printf 'parts\xe9')
expect "a run directory whose name is not UTF-8" 0 "2 steps" "$foldscale" train good.yaml --out "$latin" --set train.steps=2
expect "its run.json" 0 "over 1 chains" "$foldscale" eval "$latin" --set eval.chains=[1ubq_A]
grep -q '"parts?"' "$latin/run.json" || fail "run.json does not hold the command as UTF-8"
# what YAML refuses: U+0084, an overlong form, a surrogate, U+FFFE, one below and one beyond the characters of four bytes,
# an end in the middle; what it reads: U+0085, U+00A0, U+D7FF, U+E000, U+FFFD, U+1F600, U+10FFFF
refused=$(printf 'odd\xc2\x84\xe0\x9f\xbf\xed\xa0\x80\xef\xbf\xbe\xf0\x8f\xbf\xbf\xf4\x90\x80\x80\xf5\xc3')
read=$(printf 'odd\xc2\x85\xc2\xa0\xed\x9f\xbf\xee\x80\x80\xef\xbf\xbd\xf0\x9f\x98\x80\xf4\x8f\xbf\xbf')
expect "a run directory named by no characters" 0 "2 steps" "$foldscale" train good.yaml --out "$refused" --set train.steps=2
expect "its run.json" 0 "over 1 chains" "$foldscale" eval "$refused" --set eval.chains=[1ubq_A]
grep -q '"odd?*"' "$refused/run.json" || fail "run.json holds characters that YAML refuses"
expect "a run directory of rare characters" 0 "2 steps" "$foldscale" train good.yaml --out "$read" --set train.steps=2
expect "its run.json" 0 "over 1 chains" "$foldscale" eval "$read" --set eval.chains=[1ubq_A]
grep -qF "\"$read\"" "$read/run.json" || fail "run.json lost characters that YAML reads"
ls parts >before
expect "eval on two ranks" 0 "over 1 chains" "$foldscale" eval parts --ranks 2 --set eval.chains=[1ubq_A]
ls parts | cmp -s before - || fail "eval wrote into the run directory"
sed 's/"c_m":/"c_mm":/' parts/run.json >run.json
cp parts/ckpt_000004.safetensors .
expect "eval beside a damaged run.json" 1 'run.json:[0-9]+: unknown key "c_mm" in model' "$foldscale" eval ckpt_000004.safetensors

cp -r parts strange && rm strange/run.json && mkfifo strange/run.json
expect "a fifo in place of a run.json" 1 "run.json: not a regular file" "$foldscale" eval strange
expect "and in the way of one" 1 "run.json: cannot write: a fifo" "$foldscale" train good.yaml --out strange --resume --set train.steps=5
mkdir waiting && mkfifo waiting/steps.csv
expect "a fifo in place of the steps" 1 "waiting: holds a run already .steps.csv" "$foldscale" train good.yaml --out waiting
cp -r parts logged && rm -f logged/mlperf.log && mkfifo logged/mlperf.log
expect "a fifo in place of mlperf.log" 1 "mlperf.log: cannot write: a fifo" "$foldscale" train good.yaml --out logged --resume --set train.steps=5
cp -r queued evaluated && rm evaluated/async_eval/log.txt && mkfifo evaluated/async_eval/log.txt
expect "a fifo in place of the log of the evaluations" 1 "async_eval/log.txt: cannot write: a fifo" "$foldscale" train good.yaml \
    --out evaluated --resume --set train.steps=3 --set eval.every=1 --set eval.chains=[1ubq_A] --set switches.async_eval=on

cp -r parts damaged
head -c 5000 parts/ckpt_000004.safetensors >damaged/ckpt_000004.safetensors
expect "newest checkpoint truncated" 0 "ckpt_000004.safetensors.*trying the one before" "$foldscale" train good.yaml --out damaged --resume
cp -r parts behind
head -c 5000 parts/ckpt_000004.safetensors >behind/ckpt_000004.safetensors
expect "a run that ends before a damaged checkpoint" 0 "3 steps" \
    "$foldscale" train good.yaml --out behind --resume --set train.steps=3 --set train.keep=1
[ "$(cd behind && ls ckpt_*)" = ckpt_000003.safetensors ] || fail "the checkpoint just written is not the one that stays"
head -c 5000 parts/ckpt_000004.safetensors >bad.safetensors
expect "eval of a truncated checkpoint" 1 "bad.safetensors" "$foldscale" eval bad.safetensors --experiment good.yaml
expect "eval of another model's checkpoint" 1 "shape|parameter|missing" "$foldscale" eval parts --experiment good.yaml --set model.c_m=64

cp -r parts full
full_disk() { # writes beyond 200 KB fail as on a full disk (EFBIG instead of ENOSPC)
    ulimit -f 200
    "$foldscale" train good.yaml --out full --resume --set train.steps=6
}
export -f full_disk
expect "full disk while a checkpoint is written" 1 "ckpt_000006.safetensors.*(write|large|disk)" bash -c full_disk
ls full/ckpt_000006.safetensors full/*.tmp 2>/dev/null && fail "half a checkpoint was left"
expect "the last whole checkpoint is intact" 0 "6 steps" "$foldscale" train good.yaml --out full --resume --set train.steps=6

cp -r parts torn
for table in steps losses eval; do
    [ -s torn/$table.csv ] || fail "no $table.csv"
    printf '5,0,1,2.7' >>torn/$table.csv
done
expect "a row that a full disk cut short is dropped" 0 "note: torn/steps.csv:6: a last row without an end is dropped" \
    "$foldscale" train good.yaml --out torn --resume --set train.steps=5
grep -q "^foldscale: note: torn/losses.csv:6: " log && [ "$(grep -c '^5,' torn/steps.csv)" = 1 ] || fail "the torn rows are still there"

cp -r parts emptied && : >emptied/losses.csv
expect "a table that is empty is begun again" 0 "5 steps" "$foldscale" train good.yaml --out emptied --resume --set train.steps=5
[ "$(wc -l <emptied/losses.csv)" = 2 ] || fail "emptied/losses.csv is not a header and a row"
cp -r parts hung && rm hung/losses.csv && mkfifo hung/losses.csv
expect "a fifo in place of the losses" 1 "losses.csv: cannot write: a fifo" "$foldscale" train good.yaml --out hung --resume --set train.steps=5

# --- sweeps: a last row without an end is never continued -----------------------------------------------------------------------
cut=("$foldscale" sweep "$source_dir/experiments/quickstart.yaml" --out cut_short --set model.n_res=16 --set model.n_clust=4
    --set model.n_extra=4 --set "study.switches=[fused_attention]" --set "study.ranks=[1]" --set "study.dap=[1]"
    --set "study.ablations=[]" --set study.warmup=1 --set study.steps=4)
expect "a sweep" 0 "1 points" "${cut[@]}" --set study.repeats=1
cp cut_short/runs.csv runs_whole.csv
for bytes in 1 10; do
    cp runs_whole.csv cut_short/runs.csv
    truncate -s -$bytes cut_short/runs.csv
    expect "a sweep goes on after a row short of $bytes bytes" 1 "runs.csv:2: the last row has no end" "${cut[@]}" --set study.repeats=2
done
echo >>cut_short/runs.csv
expect "a row cut short, then ended" 1 "runs.csv:2: provenance is .* \(expected 16" "${cut[@]}" --set study.repeats=2
cp runs_whole.csv cut_short/runs.csv
expect "the whole table is continued" 0 "2 points" "${cut[@]}" --set study.repeats=2

wait_for() { # FILE LINES: until the file has that many lines
    for _ in $(seq 300); do
        [ -f "$1" ] && [ "$(wc -l <"$1")" -ge "$2" ] && return 0
        sleep 0.1
    done
    return 1
}
"$foldscale" train good.yaml --out term --set train.steps=100000 >log 2>&1 &
pid=$!
wait_for term/steps.csv 4 || fail "no steps before the signal"
kill -TERM $pid
wait $pid || fail "status after SIGTERM"
grep -q "stopped by a signal" log && ls term/ckpt_*.safetensors >/dev/null && echo "PASS SIGTERM writes a checkpoint"

"$foldscale" train good.yaml --out killed --ranks 2 --set train.steps=100000 >log 2>&1 &
pid=$!
wait_for killed/steps.csv 12 || fail "no steps on two ranks"
launcher=$(pgrep -P $pid mpirun)
victim=$(pgrep -P "$launcher" | tail -n 1)
start=$SECONDS
kill -KILL "$victim"
wait $pid
status=$?
if [ $status -eq 1 ] && [ $((SECONDS - start)) -le 20 ] && grep -q "a rank failed" log; then
    echo "PASS a killed rank takes the job down in $((SECONDS - start)) s"
else
    fail "killed rank: status $status after $((SECONDS - start)) s"
    cat log
fi
last=$(ls killed/ckpt_*.safetensors | tail -n 1 | grep -oE '[0-9]{6}')
expect "going on after the killed rank" 0 "$((10#$last + 1)) steps" "$foldscale" train good.yaml --out killed --ranks 2 --resume --set train.steps=$((10#$last + 1))

# --- a sweep that is killed takes the run it started with it ----------------------------------------------------------------------
"$foldscale" sweep good.yaml --out orphan --set "study.switches=[fused_attention]" --set "study.ranks=[1]" --set "study.dap=[1]" \
    --set "study.ablations=[]" --set study.repeats=1 --set study.warmup=1 --set study.steps=100000 >log 2>&1 &
pid=$!
for _ in $(seq 300); do # its folder is named by the point
    steps=$(find orphan -name steps.csv 2>/dev/null)
    [ -n "$steps" ] && break
    sleep 0.1
done
wait_for "${steps:-none}" 3 || fail "no steps in the sweep"
child=$(pgrep -P $pid)
kill -KILL $pid
wait $pid 2>/dev/null
expect "the run of a killed sweep ends" 0 "free" flock --timeout 20 "${steps%/*}" echo free
kill -KILL "${child:?}" 2>/dev/null # where it did not
exit $failed
