"""The official Python client against a model server (address in OPENAI_BASE_URL)."""

import base64
import os
import struct
from concurrent.futures import ThreadPoolExecutor

import openai
import pytest

MODEL = os.environ["TEST_MODEL"]
ASK = [{"role": "user", "content": "What is the capital of France? One word."}]


@pytest.fixture()
def client():
    with openai.OpenAI(max_retries=0) as client:
        yield client


def chat(client, **options):
    options = {"model": MODEL, "messages": ASK, "temperature": 0, "max_tokens": 20} | options
    return client.chat.completions.create(**options)


def test_models(client):
    models = client.models.list().data
    assert [model.id for model in models] == [MODEL]
    assert client.models.retrieve(MODEL).sha256 == models[0].sha256
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("someone/else")


def test_chat(client):
    answer = chat(client)
    assert "Paris" in answer.choices[0].message.content
    assert answer.choices[0].finish_reason == "stop"
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens
    again = chat(client)
    assert again.usage.prompt_tokens_details.cached_tokens == again.usage.prompt_tokens - 1


def test_stream_equals_whole_answer_and_ends_with_usage(client):
    whole = chat(client)
    chunks = list(chat(client, stream=True, stream_options={"include_usage": True}))
    assert chunks[0].choices[0].delta.role == "assistant"
    text = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
    assert text == whole.choices[0].message.content
    assert [c.choices[0].finish_reason for c in chunks if c.choices][-1] == "stop"
    assert all(chunk.usage is None for chunk in chunks[:-1])
    assert chunks[-1].choices == [] and chunks[-1].usage.completion_tokens == whole.usage.completion_tokens
    assert len({chunk.id for chunk in chunks}) == 1


def test_a_connection_serves_another_request_after_a_stream(client):
    for _ in range(5):
        list(chat(client, stream=True))
        chat(client, max_tokens=1)


def test_logprobs(client):
    answer = chat(client, logprobs=True, top_logprobs=3)
    tokens = answer.choices[0].logprobs.content
    assert "".join(bytes(token.bytes).decode() for token in tokens) == answer.choices[0].message.content
    assert all(len(token.top_logprobs) == 3 and token.logprob <= 0 for token in tokens)
    assert tokens[0].token == tokens[0].top_logprobs[0].token


def test_several_answers_and_seeds(client):
    ask = [{"role": "user", "content": "Invent a name."}]
    options = {"messages": ask, "temperature": 1.5, "max_tokens": 12, "seed": 7}
    chat(client, **options)
    # From here on the prompt is cached, so each run computes the same batches.
    first, second = (chat(client, **options).choices[0].message.content for _ in range(2))
    assert first == second
    answer = chat(client, n=3, **options)
    assert len({choice.message.content for choice in answer.choices}) > 1
    assert answer.usage.prompt_tokens < 40 < answer.usage.total_tokens
    streamed = ["", "", ""]
    for chunk in chat(client, n=3, stream=True, **options):
        for choice in chunk.choices:
            streamed[choice.index] += choice.delta.content or ""
    assert all(streamed)


def test_stop_and_parts_and_limits(client):
    parts = [{"role": "user", "content": [{"type": "text", "text": ASK[0]["content"]}]}]
    assert "Paris" not in chat(client, messages=parts, stop=["Paris"]).choices[0].message.content
    cut = chat(client, max_tokens=None, max_completion_tokens=2, extra_body={"ignore_eos": True})
    assert cut.choices[0].finish_reason == "length" and cut.usage.completion_tokens == 2


def test_completions(client):
    options = {"model": MODEL, "temperature": 0, "max_tokens": 6}
    one = client.completions.create(prompt="The capital of France is", logprobs=2, **options)
    assert "Paris" in one.choices[0].text
    assert len(one.choices[0].logprobs.tokens) == len(one.choices[0].logprobs.text_offset)
    two = client.completions.create(prompt=["The sky is", "The capital of France is"], echo=True, **options)
    assert [choice.index for choice in two.choices] == [0, 1]
    assert two.choices[1].text.startswith("The capital of France is")
    tokens = client.completions.create(prompt=[1, 2, 3], **options)
    assert tokens.usage.prompt_tokens == 3
    streamed = client.completions.create(prompt="The capital of France is", stream=True, **options)
    assert "".join(chunk.choices[0].text for chunk in streamed) == one.choices[0].text


def test_embeddings(client):
    # Without encoding_format this client asks for base64 and decodes it.
    answer = client.embeddings.create(model=MODEL, input=["a cat", "a dog"])
    assert [item.index for item in answer.data] == [0, 1]
    vector = answer.data[0].embedding
    assert abs(sum(x * x for x in vector) - 1) < 1e-3
    floats = client.embeddings.create(model=MODEL, input="a cat", encoding_format="float").data[0].embedding
    encoded = client.embeddings.with_raw_response.create(model=MODEL, input="a cat", encoding_format="base64")
    raw = base64.b64decode(encoded.http_response.json()["data"][0]["embedding"])
    assert struct.unpack(f"<{len(raw) // 4}f", raw) == pytest.approx(floats, abs=1e-6)
    assert vector == pytest.approx(floats, abs=1e-2)


@pytest.mark.parametrize(
    ("options", "param"),
    [
        ({"temperature": 3}, "temperature"),
        ({"n": 0}, "n"),
        ({"top_logprobs": 2}, "top_logprobs"),
        ({"messages": []}, "messages"),
        ({"tools": [{"type": "function", "function": {"name": "f"}}]}, "tools"),
        ({"response_format": {"type": "json_object"}}, "response_format"),
        ({"messages": [{"role": "user", "content": 7}]}, "messages[0].content"),
        ({"stop": ["a", "b", "c", "d", "e"]}, "stop"),
    ],
)
def test_bad_requests_name_the_field(client, options, param):
    with pytest.raises(openai.BadRequestError) as error:
        chat(client, **options)
    assert error.value.param == param


def test_errors_have_the_class_that_clients_act_on(client):
    with pytest.raises(openai.NotFoundError) as error:
        chat(client, model="unknown")
    assert error.value.code == "model_not_found"
    long = [{"role": "user", "content": "apple " * 5000}]
    with pytest.raises(openai.BadRequestError) as error:
        chat(client, messages=long)
    assert error.value.code == "context_length_exceeded"
    assert chat(client, max_tokens=1).id


def test_a_full_queue_is_a_rate_limit_with_a_time(client):
    # Two are computed, two wait, so of twelve at once some must be refused.
    def ask(number):
        try:
            return chat(client, messages=[{"role": "user", "content": f"{number}: a story"}], max_tokens=60,
                        extra_body={"ignore_eos": True})
        except openai.RateLimitError as error:
            return error

    with ThreadPoolExecutor(12) as pool:
        results = list(pool.map(ask, range(12)))
    refused = [result for result in results if isinstance(result, openai.RateLimitError)]
    assert 0 < len(refused) < 12
    assert int(refused[0].response.headers["retry-after"]) >= 1


def test_a_client_that_leaves_ends_its_answer(client):
    stream = chat(client, stream=True, max_tokens=900, extra_body={"ignore_eos": True})
    next(iter(stream))
    stream.close()
    # With both places of the engine used by answers that nobody reads, this would take long.
    other = chat(client, stream=True, max_tokens=900, extra_body={"ignore_eos": True})
    next(iter(other))
    other.close()
    assert chat(client, timeout=10).id
