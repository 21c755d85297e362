"""The official Python client: at a node that pays for it, and at a provider that nobody pays."""

import os

import httpx
import openai
import pytest
from ledger import NODE_URL, TNZO

INPUT, OUTPUT = TNZO // 10_000, 3 * TNZO // 10_000
MODEL = os.environ["TEST_MODEL"]
PROVIDER_URL = os.environ["PROVIDER_URL"]
ASK = {
    "model": MODEL,
    "messages": [{"role": "user", "content": "Write about the sea."}],
    "temperature": 0,
    "max_tokens": 40,
    # Ends that the model chooses are not charged: with none, all tokens are.
    "extra_body": {"ignore_eos": True},
}


def cost(usage):
    return str(usage.prompt_tokens * INPUT + usage.completion_tokens * OUTPUT)


@pytest.fixture()
def node():
    with openai.OpenAI(base_url=f"{NODE_URL}/v1", api_key="unused", max_retries=0) as client:
        yield client


def test_models_of_the_network(node):
    [model] = node.models.list().data
    assert (model.id, model.context_length) == (MODEL, 1024)
    assert node.models.retrieve(MODEL).sha256 == model.sha256


def test_a_whole_answer_is_paid_for_and_says_what_it_cost(node):
    answer = node.chat.completions.create(**ASK)
    assert answer.choices[0].message.content
    assert answer.choices[0].finish_reason == "length"
    assert answer.usage.completion_tokens == 40
    assert answer.usage.cost == cost(answer.usage)


def test_a_stream_is_paid_for_while_it_comes(node):
    # Three windows: more has to be paid under way. Payment events stay between the node and the provider.
    options = ASK | {"max_tokens": 100, "stream": True, "stream_options": {"include_usage": True}}
    chunks = list(node.chat.completions.create(**options))
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert [chunk.choices[0].finish_reason for chunk in chunks if chunk.choices][-1] == "length"
    usage = chunks[-1].usage
    assert usage.completion_tokens == 100
    assert usage.cost == cost(usage)


def test_a_provider_that_nobody_pays_is_an_error_with_a_reason_and_no_storm():
    requests = []
    transport = httpx.Client(event_hooks={"request": [requests.append]})
    # As the client comes: it tries again what may get better.
    with openai.OpenAI(base_url=PROVIDER_URL, api_key="unused", http_client=transport) as client:
        for options in ({}, {"stream": True}):
            requests.clear()
            with pytest.raises(openai.APIStatusError) as error:
                client.chat.completions.create(**ASK | options)
            assert error.value.status_code == 402
            assert error.value.code == "payment_required"
            assert error.value.type == "payment_required_error"
            assert "this model is paid for per token: open a payment channel" in error.value.message
            assert error.value.response.headers["www-authenticate"].startswith("Payment id=")
            assert len(requests) == 1
        # What is for free is no different.
        assert [model.id for model in client.models.list().data] == [MODEL]
