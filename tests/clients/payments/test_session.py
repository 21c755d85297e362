"""Channels from their opening to the last wei, by clients that nobody here wrote."""

import asyncio
import json

import httpx
import pytest
from eth_account import Account
from eth_account.messages import encode_typed_data
from evm_session import (
    CHAT,
    MODEL,
    Channel,
    PayerMethod,
    ask,
    challenge,
    headers_of,
    pay,
    receipt,
    receipt_of_event,
)
from ledger import CHAIN_ID, ESCROW, TNZO, TOKEN, balance, channel, new_wallet, send
from mpp.client import Client
from mpp_evm.types import SessionRequest

INPUT, OUTPUT = TNZO // 10_000, 3 * TNZO // 10_000
DEPOSIT = 2 * TNZO


@pytest.fixture()
def payer():
    return new_wallet()


def cost(usage):
    return usage["prompt_tokens"] * INPUT + usage["completion_tokens"] * OUTPUT


def events(response):
    """(event, data) of a stream, as they come."""
    name = "message"
    for line in response.iter_lines():
        if line.startswith("event: "):
            name = line.removeprefix("event: ")
        elif line.startswith("data: "):
            yield name, line.removeprefix("data: ")
            name = "message"


def test_the_challenge_says_what_is_sold_where():
    found = challenge()
    assert (found.method, found.intent, found.realm) == ("evm", "session", "127.0.0.1")
    # The models of the draft's authors read it.
    request = SessionRequest.model_validate(found.request)
    assert (int(request.amount), request.unit_type) == (OUTPUT, "llm_token")
    assert request.currency.lower() == TOKEN.lower()
    details = request.method_details
    assert details.escrow_contract.lower() == ESCROW.lower()
    assert (details.chain_id, details.fee_payer, details.min_voucher_delta) == (CHAIN_ID, True, None)
    assert found.request["methodDetails"]["credentialTypes"] == ["authorization", "hash"]
    assert int(request.suggested_deposit) == 50_000 * (INPUT + OUTPUT)
    assert found.request["pricing"] == {
        "inputPerToken": str(INPUT),
        "outputPerToken": str(OUTPUT),
        "priceVersion": 1,
        "windowTokens": 32,
    }
    assert found.request["model"]["id"] == MODEL


def test_mpps_own_client_pays_on_a_402_and_is_told_what_for(payer):
    before = balance(payer.address)
    method = PayerMethod(payer, DEPOSIT)
    statuses = []

    async def chat():
        async with Client(methods=[method]) as client:
            client.on_challenge_received(lambda event: statuses.append(event["response"].json()["type"]))
            client.on_challenge_received(method.raise_voucher)
            return await client.post(CHAT, json=ask(), timeout=120)

    response = asyncio.run(chat())
    problems = "https://paymentauth.org/problems/"
    assert statuses == [f"{problems}payment-required", f"{problems}session/insufficient-balance"]
    used = method.channel
    read, more = receipt(response)
    usage = response.json()["usage"]
    assert response.json()["choices"][0]["message"]["content"]
    assert usage["completion_tokens"] == 20
    assert (read.method, read.status, read.reference) == ("evm", "success", used.id)
    assert (more["intent"], more["channelId"], more["chainId"]) == ("session", used.id, CHAIN_ID)
    assert more["acceptedCumulative"] == more["spent"] == more["usage"]["charged"] == str(cost(usage))
    assert more["units"] == usage["prompt_tokens"] + usage["completion_tokens"]
    assert more["usage"]["inputTokens"] == usage["prompt_tokens"]
    assert more["usage"]["requestId"] == response.headers["x-request-id"]
    assert response.headers["cache-control"] == "no-store, private"
    # Paid into the escrow without a transaction of the payer's own.
    assert before - balance(payer.address) == DEPOSIT
    assert channel(used.id) == (DEPOSIT, 0, False)
    assert signer_of(more) == used.request["recipient"].lower()


def signer_of(more):
    """Who signed what a receipt says was used, by `eth_account`."""
    usage = more["usage"]
    types = {
        "UsageReceipt": [
            {"name": "channelId", "type": "bytes32"},
            {"name": "requestId", "type": "string"},
            {"name": "modelHash", "type": "bytes32"},
            {"name": "inputTokens", "type": "uint32"},
            {"name": "outputTokens", "type": "uint32"},
            {"name": "charged", "type": "uint128"},
            {"name": "spent", "type": "uint128"},
            {"name": "priceVersion", "type": "uint64"},
        ]
    }
    message = {name: usage[name] for name in ("requestId", "inputTokens", "outputTokens", "priceVersion")}
    message |= {"channelId": bytes.fromhex(more["channelId"][2:])}
    message |= {"modelHash": bytes.fromhex(usage["modelHash"][2:])}
    message |= {"charged": int(usage["charged"]), "spent": int(more["spent"])}
    domain = {
        "name": "EVM Payment Channel",
        "version": "1",
        "chainId": CHAIN_ID,
        "verifyingContract": ESCROW,
    }
    signed = encode_typed_data(domain, types, message)
    return Account.recover_message(signed, signature=usage["signature"]).lower()


def stream(used, first, **options):
    """Text, receipts and vouchers of an answer that is paid for while it comes, each time as much as asked."""
    found = challenge()
    body = ask(stream=True, stream_options={"include_usage": True}, **options)
    text, usage, last, vouchers = "", None, None, [first]
    headers = headers_of(used.update(first), found)
    with httpx.stream("POST", CHAT, json=body, headers=headers, timeout=120) as response:
        begun = receipt(response)
        for name, data in events(response):
            if name == "payment-need-voucher":
                need = json.loads(data)
                assert need["channelId"] == used.id
                # Maybe written before the last voucher came.
                assert int(need["acceptedCumulative"]) in vouchers
                assert int(need["deposit"]) == channel(used.id)[0]
                vouchers.append(int(need["requiredCumulative"]))
                paid = pay(used.update(vouchers[-1]), found)
                assert receipt(paid)[1]["acceptedCumulative"] == str(vouchers[-1])
                assert paid.content == b""
            elif name == "payment-receipt":
                last = receipt_of_event(data)
            elif data != "[DONE]":
                chunk = json.loads(data)
                usage = chunk["usage"] or usage
                text += "".join(choice["delta"].get("content") or "" for choice in chunk["choices"])
    return text, usage, begun, last, vouchers


def test_one_channel_from_opening_to_close_to_the_wei(payer):
    found = challenge()
    used = Channel(payer, found.request)
    provider = found.request["recipient"]
    before = balance(payer.address), balance(provider)

    # Opened with a first voucher over nothing: served is what is paid for, and how much that takes is said.
    refused = pay(used.open(DEPOSIT, 0), found, body=ask())
    assert refused.status_code == 402
    required = int(refused.json()["requiredCumulative"])
    whole = pay(used.update(required), body=ask())
    _, more = receipt(whole)
    spent = cost(whole.json()["usage"])
    # The provider counts prompts as the model does, and a whole answer is set aside for in full.
    assert more["spent"] == str(spent) == str(required)

    prompt = whole.json()["usage"]["prompt_tokens"] * INPUT
    text, usage, begun, last, vouchers = stream(used, spent + prompt + 32 * OUTPUT, max_tokens=100)
    assert usage["completion_tokens"] == 100 and text
    assert begun[1]["spent"] == str(spent) and "usage" not in begun[1]
    spent += cost(usage)
    assert (last[0].method, last[0].reference) == ("evm", used.id)
    assert last[1]["spent"] == str(spent) and last[1]["usage"]["charged"] == str(cost(usage))
    assert last[1]["usage"]["finish"] == "length"
    assert signer_of(last[1]) == provider.lower()
    # Asked for more than once, not for every token, and in all for what the answer cost.
    assert 2 < len(vouchers) < 12 and vouchers == sorted(set(vouchers))
    assert vouchers[-1] == spent

    _, more = receipt(pay(used.top_up(DEPOSIT)))
    assert channel(used.id) == (2 * DEPOSIT, 0, False)
    assert more["spent"] == str(spent)
    beyond = pay(used.update(DEPOSIT + 1))
    assert receipt(beyond)[1]["acceptedCumulative"] == str(DEPOSIT + 1)

    closed, more = receipt(pay(used.update(spent, "close")))
    assert closed.reference == used.id and more["spent"] == str(spent)
    assert more["txHash"].startswith("0x") and len(more["txHash"]) == 66
    assert channel(used.id) == (2 * DEPOSIT, spent, True)
    assert balance(payer.address) == before[0] - spent
    assert balance(provider) == before[1] + spent


def test_a_channel_that_its_payer_opens_itself(payer):
    found = challenge()
    used = Channel(payer, found.request)
    before = balance(payer.address), balance(found.request["recipient"])
    send(payer, TOKEN, "approve", ESCROW, DEPOSIT)
    sent = send(payer, ESCROW, "open", found.request["recipient"], TOKEN, DEPOSIT, used.salt, "0x" + "00" * 20)
    assert channel(used.id) == (DEPOSIT, 0, False)

    body = ask(max_tokens=5)
    opened = pay(used.opened_by(sent, DEPOSIT // 10), found, used.source, body)
    spent = cost(opened.json()["usage"])
    assert receipt(opened)[1]["spent"] == str(spent)

    send(payer, TOKEN, "approve", ESCROW, DEPOSIT)
    sent = send(payer, ESCROW, "topUp", bytes.fromhex(used.id[2:]), DEPOSIT)
    added = {
        "action": "topUp",
        "type": "hash",
        "channelId": used.id,
        "hash": sent,
        "additionalDeposit": str(DEPOSIT),
    }
    receipt(pay(added, source=used.source))
    receipt(pay(used.update(DEPOSIT + 1)))

    # A last voucher below what was delivered does not count; of the others the lowest that covers it does.
    receipt(pay(used.update(spent - 1, "close")))
    taken = DEPOSIT // 10
    assert channel(used.id) == (2 * DEPOSIT, taken, True)
    assert balance(payer.address) == before[0] - taken
    assert balance(found.request["recipient"]) == before[1] + taken


def test_a_deposit_merged_into_a_voucher(payer):
    used = Channel(payer, challenge().request)
    before = balance(payer.address)
    fields = ("authorization", "signature", "salt")

    def merged(payload, action, amount):
        deposit = {name: payload[name] for name in fields} | {"action": action, "type": "authorization"}
        return used.update(amount) | {"deposit": deposit}

    first = pay(merged(used.open(DEPOSIT, 0), "open", DEPOSIT), body=ask(max_tokens=5))
    spent = cost(first.json()["usage"])
    assert receipt(first)[1]["acceptedCumulative"] == str(DEPOSIT)
    more = pay(merged(used.top_up(DEPOSIT), "topUp", 2 * DEPOSIT))
    assert receipt(more)[1]["acceptedCumulative"] == str(2 * DEPOSIT)
    receipt(pay(used.update(spent, "close"), verb="POST"))
    assert balance(payer.address) == before - spent
