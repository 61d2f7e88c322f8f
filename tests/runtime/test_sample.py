"""The sample model learns, its recording is a valid trace, and nothing it records was trained on."""

import dataclasses
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from grace_opt.trace_file import read_trace
from grace_opt.trace_statistics import fit_statistics, groups_of_independent_draws
from runtime.sample import __main__ as command
from runtime.sample.checkpoint import load_model, save_model
from runtime.sample.model import Experts, KeyValueCache, Router, SampleConfig, SampleMoE
from runtime.sample.record import record, write_recording
from runtime.sample.text import Corpus, Tokenizer, load_corpus
from runtime.sample.train import TrainConfig, loss_per_byte, train

TINY = TrainConfig(steps=12, batch=4, length=32, warmup=2)


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """Many threads on a busy machine wait for each other longer than these tiny matrices take."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def corpus() -> Corpus:
    return load_corpus(length=32, files_per_domain=4, num_pieces=100)


@pytest.fixture(scope="module")
def config(corpus: Corpus) -> SampleConfig:
    return SampleConfig(
        corpus.tokenizer.num_tokens, num_layers=2, num_experts=16, top_k=4, hidden=32, ffn=16, num_heads=2
    )


@pytest.fixture(scope="module")
def model(corpus: Corpus, config: SampleConfig) -> SampleMoE:
    return train(corpus, config, TINY)


def test_recorded_files_were_not_trained_on(corpus: Corpus) -> None:
    assert not set(corpus.train_files) & set(corpus.recorded_files)
    assert len(corpus.recorded_files) == len(set(corpus.recorded_files)) == len(corpus.recorded)
    assert not any("test" in path.split("/")[:-1] for path in corpus.train_files + corpus.recorded_files)


def test_every_recorded_sequence_has_a_domain(corpus: Corpus) -> None:
    assert len(corpus.domain_names) >= 4
    assert len(corpus.domain) == len(corpus.recorded)
    assert set(corpus.domain) == set(range(len(corpus.domain_names)))


def test_tokens_become_the_same_text_again() -> None:
    tokenizer = Tokenizer.learn([b"def self(self): return self\n"] * 3, num_pieces=4)
    text = "def selfish(self):\n    return 'é\t\r\n'".encode()
    tokens = tokenizer.encode(text)
    assert tokenizer.decode(tokens) == text
    assert len(tokens) < len(text) and max(tokens) < tokenizer.bos


def test_the_longest_known_piece_is_one_token() -> None:
    tokenizer = Tokenizer((b"se", b"self"))
    assert tokenizer.encode(b"selfsense") == [257, 256, ord("n"), 256]


def test_the_loss_falls(corpus: Corpus, config: SampleConfig, model: SampleMoE) -> None:
    windows = torch.from_numpy(corpus.recorded)
    untrained = loss_per_byte(SampleMoE(config), windows, corpus.tokenizer.token_bytes)
    assert loss_per_byte(model, windows, corpus.tokenizer.token_bytes) < 0.9 * untrained


def test_experts_give_the_weighted_sum_of_their_outputs(config: SampleConfig) -> None:
    experts, router = Experts(config), Router(config)
    x_TD = torch.randn(5, config.hidden)
    routed = router(x_TD)
    expected_TD = torch.zeros_like(x_TD)
    for token in range(5):
        for expert, weight in zip(routed.expert_ids[token], routed.weights[token], strict=True):
            inner = torch.nn.functional.silu(x_TD[token] @ experts.gate[expert]) * (x_TD[token] @ experts.up[expert])
            expected_TD[token] += weight * (inner @ experts.down[expert])
    torch.testing.assert_close(experts(x_TD, routed.expert_ids, routed.weights), expected_TD, rtol=1e-4, atol=1e-5)


def test_a_position_does_not_see_what_follows_it(corpus: Corpus, model: SampleMoE) -> None:
    tokens = torch.from_numpy(corpus.recorded[:1])
    changed = tokens.clone()
    changed[0, 20] = 0
    assert torch.allclose(model(tokens).logits[0, :20], model(changed).logits[0, :20], atol=1e-5)
    assert not torch.allclose(model(tokens).logits[0, 20:], model(changed).logits[0, 20:], atol=1e-5)


@pytest.mark.parametrize("parts", [(16, *[1] * 16), (1,) * 32, (5, 11, 16)])
def test_reading_with_a_cache_gives_what_reading_at_once_gives(
    parts: tuple[int, ...], corpus: Corpus, config: SampleConfig, model: SampleMoE
) -> None:
    tokens = torch.from_numpy(corpus.recorded[:4])
    caches = [KeyValueCache.empty(config, 4, 40) for _ in range(config.num_layers)]
    with torch.no_grad():
        expected = model(tokens)
        outputs = [model(part, caches) for part in torch.split(tokens, parts, dim=1)]
    logits = torch.cat([output.logits for output in outputs], dim=1)
    torch.testing.assert_close(logits, expected.logits, rtol=1e-5, atol=1e-5)
    assert torch.equal(logits.argmax(-1), expected.logits.argmax(-1))
    assert torch.equal(torch.cat([output.expert_ids for output in outputs], dim=2), expected.expert_ids)
    assert [cache.length for cache in caches] == [32] * config.num_layers


def test_a_full_cache_takes_no_more(config: SampleConfig) -> None:
    cache = KeyValueCache.empty(config, 1, 2)
    part = torch.zeros(1, config.num_heads, 2, config.hidden // config.num_heads)
    cache.append(part, part)
    with pytest.raises(AssertionError, match="no room for 4 positions"):
        cache.append(part, part)


def test_the_recording_is_a_valid_trace(corpus: Corpus, model: SampleMoE, tmp_path: Path) -> None:
    write_recording(tmp_path / "sample.safetensors", model, corpus, TINY)
    trace = read_trace(tmp_path / "sample.safetensors")  # checks ranges and that no token chose an expert twice
    assert trace.expert_ids.dtype == np.uint8
    assert trace.expert_ids.shape == (2, corpus.recorded.size, 4)
    assert (trace.lengths == 32).all() and trace.num_experts == 16
    assert np.array_equal(trace.domains, corpus.domain) and trace.domain_names == corpus.domain_names
    assert not trace.synthetic and (trace.model, trace.phase) == ("sample-moe", "prefill")


def test_experts_are_recorded_best_first(corpus: Corpus, model: SampleMoE) -> None:
    first = model.layers[0]
    tokens = torch.from_numpy(corpus.recorded[:1])
    x_BCD = torch.nn.functional.embedding(tokens, model.embedding)
    x_BCD = x_BCD + first.attention(first.attention_norm(x_BCD))
    logits_TE = first.experts_norm(x_BCD)[0] @ first.router.weight.T
    expected = logits_TE.argsort(-1, descending=True)[:, :4].numpy()
    assert np.array_equal(record(model, corpus.recorded[:1])[0], expected)


def test_the_same_seed_gives_the_same_trace(corpus: Corpus, config: SampleConfig, model: SampleMoE) -> None:
    again, other = (train(corpus, config, dataclasses.replace(TINY, seed=seed)) for seed in (0, 1))
    assert np.array_equal(record(model, corpus.recorded), record(again, corpus.recorded))
    assert not np.array_equal(record(model, corpus.recorded), record(other, corpus.recorded))


def test_a_checkpoint_restores_model_and_tokenizer(corpus: Corpus, model: SampleMoE, tmp_path: Path) -> None:
    save_model(tmp_path / "model.safetensors", model, corpus.tokenizer)
    restored, tokenizer = load_model(tmp_path / "model.safetensors")
    assert tokenizer == corpus.tokenizer
    assert np.array_equal(record(restored, corpus.recorded), record(model, corpus.recorded))
    write_recording(tmp_path / "other.safetensors", model, corpus, TINY)
    with pytest.raises(ValueError, match="format must be grace-sample-model"):
        load_model(tmp_path / "other.safetensors")


@pytest.mark.parametrize("flags", [["--steps", "0"], ["--steps", "few"], ["--output", "/dev/null/sample"]])
def test_a_bad_flag_ends_with_status_2(flags: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        command.main(flags)
    assert ended.value.code == 2
    assert flags[0] in capsys.readouterr().err


def test_the_sample_we_carry_has_affinity_that_its_loads_do_not_explain() -> None:
    path = Path(__file__).parents[2] / "conf" / "samples" / "sample.safetensors"
    trace = read_trace(path)
    assert trace.expert_ids.shape[0::2] == (8, 8) and trace.num_experts == 64
    assert trace.num_tokens >= 20_000 and trace.num_sequences >= 60 and len(trace.domain_names) >= 4
    assert path.stat().st_size < 1_900_000
    figures = fit_statistics(trace).figures
    assert figures["groups_fitted"] < 0.85 * min(figures["groups_index"], groups_of_independent_draws(trace))
