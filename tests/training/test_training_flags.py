"""Test the flags of `jat-engine train`: published ones, those without effect, mistakes, and what is not installed."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

for package in ("accelerate", "datasets"):
    pytest.importorskip(package, reason="the extra train is not installed")

import torch
from helpers.training_data import episode, write_split
from helpers.training_runs import flags, weights, write_inputs
from transformers import TrainingArguments

from jat_engine.cli import main
from jat_engine.training.arguments import JatTrainingArguments
from jat_engine.training.flags import HELP, NO_EFFECT, PUBLISHED, PublishedArguments, check_published

HOPPER = ["mujoco-hopper"]

EFFECTIVE_FLAGS = """
output_dir per_device_train_batch_size num_train_epochs max_steps learning_rate lr_scheduler_type lr_scheduler_kwargs
warmup_steps optim optim_args weight_decay adam_beta1 adam_beta2 adam_epsilon optim_target_modules
gradient_accumulation_steps max_grad_norm bf16 fp16 tf32 activation_checkpointing activation_checkpointing_kwargs
gradient_checkpointing gradient_checkpointing_kwargs torch_compile torch_compile_backend torch_compile_mode
torch_empty_cache_steps logging_strategy logging_steps logging_first_step log_on_each_node logging_nan_inf_filter
log_level log_level_replica disable_tqdm report_to run_name project trackio_space_id trackio_bucket_id
trackio_static_space_id eval_strategy eval_steps eval_delay per_device_eval_batch_size eval_on_start save_only_model
save_strategy save_steps save_on_each_node save_total_limit enable_jit_checkpoint push_to_hub hub_token
hub_private_repo hub_model_id hub_strategy hub_always_push hub_revision load_best_model_at_end metric_for_best_model
greater_is_better ignore_data_skip restore_callback_states_from_checkpoint full_determinism seed data_seed use_cpu
accelerator_config dataloader_num_workers dataloader_pin_memory dataloader_persistent_workers
dataloader_prefetch_factor remove_unused_columns train_sampling_strategy ddp_find_unused_parameters
ddp_bucket_cap_mb ddp_broadcast_buffers ddp_backend ddp_timeout fsdp fsdp_config deepspeed debug skip_memory_metrics
do_train do_eval resume_from_checkpoint local_rank
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write the inputs of trainings, and data `untested` without a test split."""
    folder = write_inputs(tmp_path_factory.mktemp("flags"))
    write_split(folder / "untested", "mujoco-hopper", "train", [episode("continuous", 12, i) for i in range(6)])
    return folder


# ---- published flags -----------------------------------------------------------------------------------------------


@pytest.mark.versions
def test_the_published_command_runs(folder: Path, tmp_path: Path) -> None:
    published = ["--trust_remote_code", "--gradient_accumulation_steps", "2", "--save_steps", "10000"]
    published += ["--run_name", "train_jat_small", "--logging_steps", "100", "--logging_first_step"]
    published += ["--dispatch_batches", "False", "--dataloader_num_workers", "1", "--max_steps", "2"]
    more = ["--save_safetensors", "--overwrite_output_dir", "--group_by_length", "false", "--preprocess_num_proc", "1"]
    assert main(flags(folder, tmp_path / "published", *published, *more, tasks=HOPPER)) == 0
    plain = ["--gradient_accumulation_steps", "2", "--max_steps", "2"]
    assert main(flags(folder, tmp_path / "plain", *plain, tasks=HOPPER)) == 0
    expected = weights(tmp_path / "plain")
    assert all(torch.equal(value, expected[name]) for name, value in weights(tmp_path / "published").items())


@pytest.mark.versions
def test_other_values_of_published_flags_are_refused() -> None:
    known = {field.name for field in fields(TrainingArguments)}
    assert {field.name for field in fields(PublishedArguments)} == PUBLISHED.keys() - known
    for name in PUBLISHED.keys() - known:
        accepted, remedy = PUBLISHED[name]
        for value in accepted:
            check_published(PublishedArguments(**{name: value}))
        if remedy:
            with pytest.raises(ValueError, match=f"^--{name}: .*, got other: ") as error:
                check_published(PublishedArguments(**{name: "other"}))
            assert str(error.value).endswith(remedy)


def test_former_flags_are_not_in_the_help(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["train", "--help"])
    shown = capsys.readouterr().out
    assert "--from_scratch" in shown
    assert not [name for name in PUBLISHED if f"--{name} " in shown]


@pytest.mark.versions
def test_the_help_shows_our_flags_first_and_few_of_transformers(capsys: pytest.CaptureFixture[str]) -> None:
    shown = {}
    for flag in ("--help", "--help-all", "--help_all"):
        with pytest.raises(SystemExit) as done:
            main(["train", flag])
        assert done.value.code == 0
        shown[flag] = capsys.readouterr().out
    short, whole = shown["--help"], shown["--help-all"]
    assert whole == shown["--help_all"]
    assert short.count("--help-all") == 1
    assert len(short.splitlines()) < 150
    for name in ("eval_episodes", *(name for names in HELP.values() for name in names)):
        assert f"--{name} " in short
    assert short.index("--eval_episodes ") < short.index("--learning_rate ")
    known = {field.name for field in fields(TrainingArguments)}
    assert not {name for names in HELP.values() for name in names} - known
    assert not [name for name in known if f"--{name}" not in whole]
    assert "--hub_token" not in short
    assert f"refused: {NO_EFFECT['label_smoothing_factor'][:20]}" in whole


def test_flags_with_dashes(folder: Path, tmp_path: Path) -> None:
    given = ["--max-steps=1", "--freeze", "continuous", "--learning-rate", "0.5", "--logging-first-step"]
    assert main(flags(folder, tmp_path, *given, tasks=HOPPER)) == 0
    assert torch.load(tmp_path / "training_args.bin", weights_only=False).learning_rate == 0.5


def test_from_scratch_takes_the_configuration_alone(folder: Path, tmp_path: Path) -> None:
    still = ["--learning_rate", "0", "--max_steps", "1", "--seed", "5"]
    assert main(flags(folder, tmp_path / "new", *still, "--from_scratch", tasks=HOPPER)) == 0
    assert main(flags(folder, tmp_path / "old", *still, tasks=HOPPER)) == 0
    given, new, old = weights(folder / "model"), weights(tmp_path / "new"), weights(tmp_path / "old")
    name = "transformer.h.0.mlp.c_fc.weight"
    assert torch.equal(old[name], given[name])
    assert new[name].shape == given[name].shape
    assert not torch.equal(new[name], given[name])


# ---- transformers' flags -------------------------------------------------------------------------------------------


def test_every_training_argument_of_transformers_is_judged() -> None:
    """Check that a flag that a release of transformers adds is looked at: does it have an effect here?"""
    known = {field.name for field in fields(TrainingArguments)}
    assert not known - NO_EFFECT.keys() - set(EFFECTIVE_FLAGS.split())  # an older release has fewer
    assert not NO_EFFECT.keys() & set(EFFECTIVE_FLAGS.split())


@pytest.mark.versions
@pytest.mark.parametrize("name", [field.name for field in fields(TrainingArguments) if field.name in NO_EFFECT])
def test_flags_without_effect_are_refused(name: str, tmp_path: Path) -> None:
    default = next(field.default for field in fields(TrainingArguments) if field.name == name)
    value: Any = not default if isinstance(default, bool) else 0.5 if isinstance(default, float) else "x"
    with pytest.raises(ValueError, match=f"^--{name} .* has no use here: "):
        JatTrainingArguments(str(tmp_path), **{name: value})
    if isinstance(default, bool | float | str):
        JatTrainingArguments(str(tmp_path), **{name: default})


@pytest.mark.versions
def test_bfloat16_on_a_machine_without_gpu_needs_no_other_flag(tmp_path: Path) -> None:
    if torch.accelerator.is_available():
        pytest.skip("there is a GPU")
    arguments = JatTrainingArguments(str(tmp_path), bf16=True)
    assert arguments.device.type == "cpu"
    assert arguments.mixed_precision == "bf16"


# ---- mistakes ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("--tasks mujoco-hoper", "no task is named 'mujoco-hoper'; did you mean mujoco-hopper"),
        ("--tasks mujoco-ant", "mujoco-ant"),
        ("--dataset /nowhere", "--dataset: expected a folder or the name of a dataset on the hub, got '/nowhere'"),
        ("--preset small", "expected one of --model_name_or_path, --preset and --config_name, got several"),
        ("--loss_weights mujoco", "--loss_weights: expected task=number"),
        ("--batch_sizes mujoco=1.5", "--batch_sizes: mujoco: expected a number above 0, got '1.5'"),
        ("--fsdp full_shard", "--fsdp: expected GPUs, got the CPU"),
        ("--fp16", "--fp16: expected a GPU, got the CPU"),
        ("--tf32 true", "--tf32: expected an NVIDIA GPU"),
        ("--streaming", "--streaming: expected --max_steps"),
        ("--streaming --max_steps 1 --train_sampling_strategy group_by_length", "--train_sampling_strategy random"),
        ("--train_sampling_strategy sequential", "expected random or group_by_length, got sequential"),
        ("--action_shuffle 2", "--action_shuffle: expected a share in [0, 1], got 2.0"),
        ("--freeze head", "--freeze: expected the beginning of a parameter's name, got 'head'"),
        ("--per_device_train_batch_size 0", "--per_device_train_batch_size: expected at least 1, got 0"),
        ("--gradient_accumulation_steps 0", "--gradient_accumulation_steps: expected at least 1, got 0"),
        ("--learning_rate nan", "--learning_rate: expected a number from 0 to 1e30, got nan"),
        ("--weight_decay -1", "--weight_decay: expected a finite number of at least 0, got -1.0"),
        ("--adam_beta2 1", "--adam_beta2: expected a number of at least 0, below 1, got 1.0"),
        ("--max_steps 0", "--max_steps: expected at least 1, or -1 for whole epochs, got 0"),
        ("--num_train_epochs inf", "--num_train_epochs: expected a number above 0, got inf"),
        ("--logging_steps -1", "--logging_steps: expected a number above 0, got -1.0"),
        ("--save_total_limit 0", "--save_total_limit: expected at least 1, got 0"),
        ("--seed -1", "--seed: expected a whole number from 0 to 2**32 - 1, got -1"),
        ("--data_seed 4294967296", "--data_seed: expected a whole number from 0 to 2**32 - 1, got 4294967296"),
        ("--eval_num_samples 0", "--eval_num_samples: expected at least 1, got 0"),
        ("--eval_num_samples 3", "--eval_num_samples: expected --eval_strategy steps or epoch with it"),
        ("--eval_steps 3", "--eval_steps: expected --eval_strategy steps or epoch with it, got none"),
        ("--load_best_model_at_end", "--load_best_model_at_end: expected --eval_strategy steps or epoch with it"),
        ("--save_strategy best --eval_strategy epoch", "--save_strategy best: expected --metric_for_best_model"),
        ("--eval_strategy epoch --greater_is_better true", "--greater_is_better: expected false or no such flag"),
        ("--eval_strategy epoch --metric_for_best_model mse", "expected one of loss, mujoco-hopper_loss, "),
        (
            "--dataset {folder}/untested --tasks mujoco-hopper --eval_strategy epoch",
            "expected a task with a split test",
        ),
        ("--hub_model_id me/agent", "--hub_model_id: expected --push_to_hub with it"),
        ("--push_to_hub", "--push_to_hub: there is no token for the hub; log in"),
        ("--report_to wanb", "got wanb; did you mean wandb?"),
        ("--report_to neptune", "--report_to neptune: expected neptune, not installed here; pip install neptune"),
        ("--deepspeed x.json", "--deepspeed: expected deepspeed, not installed here; pip install deepspeed"),
        ("--optim lomo", "pip install lomo-optim"),
        ("--optim_args momentum=1", "--optim_args momentum=1 has no effect"),
        ("--lr_scheduler_type cosine_with_min_lr", "--lr_scheduler_type cosine_with_min_lr: One of min_lr"),
        ('--lr_scheduler_kwargs {{"a":1}}', "unexpected keyword argument 'a'"),
        ("--lr_scheduler_kwargs a=1", "--lr_scheduler_kwargs: expected a JSON object"),
        ('--accelerator_config {{"split_batches":true}}', "expected split_batches and dispatch_batches false"),
        ("--torch_compile_backend none", "--torch_compile_backend: expected one of"),
        ("--resume_from_checkpoint latest", "there is no complete checkpoint in"),
        ("--model_name_or_path /nowhere", "--model_name_or_path /nowhere"),
    ],
)
def test_errors(
    change: str,
    message: str,
    folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Check that mistakes are one line, before any data is prepared and without a trace in the output folder."""
    monkeypatch.setenv("HF_TOKEN", "")
    given = [part.format(folder=folder) for part in change.split()]
    cache = ["--cache_dir", str(tmp_path / "cache")]
    assert main([*flags(folder, tmp_path / "out", *cache), *given]) == 2
    assert message in capsys.readouterr().err.splitlines()[-1]
    assert not (tmp_path / "out").exists()
    if "mujoco-ant" not in change:
        assert not (tmp_path / "cache").exists()


def test_nothing_is_left_to_train(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*flags(folder, tmp_path / "out"), "--freeze", ""]) == 2
    assert "--freeze: expected parameters that are left to train, got ''" in capsys.readouterr().err


def test_unknown_flags(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as error:
        main([*flags(folder, tmp_path / "out"), "--learning-rat", "1"])
    assert error.value.code == 2
    assert "unrecognized arguments: --learning-rat 1" in capsys.readouterr().err
