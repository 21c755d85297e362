"""What is refused, with the problem types of the drafts, and that it costs nobody anything."""

import hashlib
import json
import os
from dataclasses import replace

import httpx
import pytest
from eth_account import Account
from evm_session import CHAT, Channel, ask, challenge, headers_of, pay, problem, receipt
from ledger import CHAIN_ID, ESCROW, TNZO, TOKEN, balance, channel, new_wallet, send
from mpp import Challenge

DEPOSIT = TNZO
HALF = DEPOSIT // 2


@pytest.fixture(scope="module")
def used():
    """An open channel, half of it signed for and nothing spent."""
    opened = Channel(new_wallet(), challenge().request)
    receipt(pay(opened.open(DEPOSIT, HALF)))
    return opened


@pytest.fixture(autouse=True)
def nothing_is_lost(used):
    before = balance(used.payer.address), channel(used.id), state(used)
    yield
    assert (balance(used.payer.address), channel(used.id), state(used)) == before


def state(used):
    """What the provider has of the channel, by a voucher that is no new money."""
    _, found = receipt(pay(used.update(0)))
    return found["acceptedCumulative"], found["spent"]


def refused(payload, **options):
    answer = pay(payload, verb="POST", **options)
    status, kind, body = problem(answer)
    # What another payment could mend comes with a challenge that can be answered.
    assert ("www-authenticate" in answer.headers) == (status in (402, 410))
    assert answer.headers["cache-control"] == "no-store"
    return status, kind, body


def test_without_a_payment():
    unpaid = httpx.post(CHAT, json=ask())
    status, kind, body = problem(unpaid)
    assert (status, kind) == (402, "payment-required")
    assert body["error"] == {
        "message": body["detail"],
        "type": "payment_required_error",
        "param": None,
        "code": "payment_required",
    }


def test_no_signature(used):
    # s is above half of the curve's order: the contract would not take it.
    broken = used.update(HALF + 1) | {"signature": "0x" + "ff" * 64 + "1b"}
    status, kind, body = refused(broken)
    assert (status, kind, body["channelId"]) == (402, "session/invalid-signature", used.id)


def test_the_signature_of_somebody_else(used):
    stranger = Account.create()
    # Also where it would be no new money: whoever knows a channel's id learns nothing.
    for amount in (HALF + 1, 0):
        status, kind, body = refused(used.update(amount, signer=stranger))
        assert (status, kind) == (402, "session/signer-mismatch")
        assert "channel" not in body


def test_more_than_is_deposited(used):
    status, kind, body = refused(used.update(DEPOSIT + 1))
    assert (status, kind) == (402, "session/amount-exceeds-deposit")
    assert body["channel"]["deposit"] == str(DEPOSIT)
    # The payer's own last voucher comes back to it.
    assert body["channel"]["voucher"] == {
        name: value for name, value in used.update(HALF).items() if name != "action"
    }


def test_a_channel_that_nobody_opened(used):
    unknown = Channel(used.payer, used.request)
    status, kind, body = refused(unknown.update(1))
    assert (status, kind, body["channelId"]) == (410, "session/channel-not-found", unknown.id)


def another(used):
    """A channel of a new payer's: what is left in it is nobody's business here."""
    return Channel(new_wallet(), used.request)


def test_a_channel_that_is_closed(used):
    closed = another(used)
    receipt(pay(closed.open(DEPOSIT, HALF)))
    spent = int(receipt(pay(closed.update(HALF), body=ask(max_tokens=1)))[1]["spent"])
    receipt(pay(closed.update(spent, "close")))
    assert channel(closed.id) == (DEPOSIT, spent, True)
    for payload in (closed.update(HALF + 1), closed.update(spent, "close"), closed.open(DEPOSIT, 0)):
        assert refused(payload)[:2] == (410, "session/channel-finalized")


def test_closing_what_bought_nothing(used):
    status, kind, body = refused(used.update(HALF, "close"))
    assert (status, kind) == (409, "about:blank") and "requestClose" in body["detail"]


def test_an_opening_that_comes_twice_opens_once(used):
    twice = another(used)
    before = balance(twice.payer.address)
    payload = twice.open(DEPOSIT, 0)
    receipt(pay(payload))
    receipt(pay(payload))
    assert before - balance(twice.payer.address) == DEPOSIT


def test_a_top_up_that_comes_twice_adds_once(used):
    topped = another(used)
    receipt(pay(topped.open(DEPOSIT, 0)))
    payload = topped.top_up(DEPOSIT)
    receipt(pay(payload))
    assert refused(payload)[0] in (402, 409)
    assert channel(topped.id) == (2 * DEPOSIT, 0, False)


def test_a_voucher_that_comes_again_is_no_new_money(used):
    again = Channel(used.payer, used.request)
    receipt(pay(again.open(DEPOSIT, 0)))
    required = int(refused(again.update(0), body=ask())[2]["requiredCumulative"])
    found = challenge()
    first = pay(again.update(required), found, body=ask())
    assert receipt(first)[1]["spent"] == str(required)
    status, kind, body = refused(again.update(required), to=found, body=ask())
    assert (status, kind) == (402, "session/insufficient-balance")
    assert int(body["requiredCumulative"]) == 2 * required
    receipt(pay(again.update(required, "close")))
    assert channel(again.id) == (DEPOSIT, required, True)
    # This one cost something: it is the payer's again, for the check that nothing is lost.
    give_back(used.payer.address, required)


def give_back(address, amount):
    send(new_wallet(), TOKEN, "transfer", address, amount)


def request_auth(used, found, body, nonce):
    """Binds a credential to one request: our extension, signed as typed data."""
    data = b"POST\n/v1/chat/completions\n" + body
    message = {
        "channelId": bytes.fromhex(used.id[2:]),
        "challengeId": found.id,
        "requestHash": hashlib.sha256(data).digest(),
        "nonce": nonce,
    }
    kinds = ["bytes32", "string", "bytes32", "bytes32"]
    fields = [{"name": name, "type": kind} for name, kind in zip(message, kinds, strict=True)]
    domain = {
        "name": "EVM Payment Channel",
        "version": "1",
        "chainId": CHAIN_ID,
        "verifyingContract": ESCROW,
    }
    signed = used.payer.sign_typed_data(domain, {"RequestAuth": fields}, message)
    return {
        "requestHash": "0x" + message["requestHash"].hex(),
        "nonce": "0x" + nonce.hex(),
        "signature": "0x" + bytes(signed.signature).hex(),
    }


def test_a_credential_that_is_bound_to_its_request_serves_nobody_else(used):
    bound = Channel(used.payer, used.request)
    # Paid ahead: what binds the channel is no new money.
    receipt(pay(bound.open(DEPOSIT, DEPOSIT)))
    found = challenge()
    body = json.dumps(ask(max_tokens=1)).encode()
    payload = bound.update(DEPOSIT) | {"requestAuth": request_auth(bound, found, body, os.urandom(32))}

    def post(payload, body):
        headers = headers_of(payload, found) | {"content-type": "application/json"}
        return httpx.post(CHAT, content=body, headers=headers, timeout=60)

    spent = int(receipt(post(payload, body))[1]["spent"])
    other = json.dumps(ask(max_tokens=2)).encode()
    # Copied, moved to another request, and without what binds it.
    for payload, body in ((payload, body), (payload, other), (bound.update(DEPOSIT), body)):
        assert problem(post(payload, body))[:2] == (402, "verification-failed")
    last = bound.update(spent, "close")
    assert refused(last)[:2] == (402, "verification-failed")
    last |= {"requestAuth": request_auth(bound, found, b"", os.urandom(32))}
    receipt(pay(last, found, verb="POST"))
    assert channel(bound.id) == (DEPOSIT, spent, True)
    give_back(used.payer.address, spent)


def test_too_little_to_open_a_channel(used):
    small = Channel(used.payer, used.request)
    assert refused(small.open(1, 0))[:2] == (402, "payment-insufficient")


def test_a_deposit_for_another_channel(used):
    one, other = (Channel(used.payer, used.request) for _ in range(2))
    mixed = one.open(DEPOSIT, 0) | {"channelId": other.id}
    assert refused(mixed)[:2] == (400, "malformed-credential")
    mixed = one.open(DEPOSIT, 0)
    mixed["authorization"]["nonce"] = "0x" + "11" * 32
    assert refused(mixed)[0] == 400


def test_a_challenge_that_was_changed(used):
    found = challenge()
    for changed in (
        replace(found, id="A" * len(found.id)),
        replace(found, realm="example.com"),
        replace(found, expires="2099-01-01T00:00:00Z"),
        replace(found, expires=None),
        replace(found, request_b64=cheaper(found)),
    ):
        assert refused(used.update(HALF), to=changed)[:2] == (402, "session/challenge-not-found")


def cheaper(found):
    """The request with a price of the payer's own, as MPP writes it."""
    request = found.request | {"pricing": found.request["pricing"] | {"outputPerToken": "0"}}
    made = Challenge.create(secret_key="x", realm="x", method="evm", intent="session", request=request)
    return made.request_b64


@pytest.mark.parametrize(
    "change",
    [
        {"action": "settle"},
        {"cumulativeAmount": "-1"},
        {"cumulativeAmount": "1.5"},
        {"cumulativeAmount": str(2**128)},
        {"signature": "0x12"},
        {"channelId": "0x12"},
        {"channelId": None},
    ],
)
def test_what_makes_no_sense(used, change):
    assert refused(used.update(HALF) | change)[:2] == (400, "malformed-credential")


@pytest.mark.parametrize("token", ["!", "e30"], ids=["letters", "empty"])
def test_what_cannot_be_read(token):
    answer = httpx.post(CHAT, json=ask(), headers={"authorization": f"Payment {token}"})
    assert problem(answer)[:2] == (402, "malformed-credential")
    assert "www-authenticate" in answer.headers


@pytest.mark.parametrize("value", ["Payment", "Payment " + "A" * 20_000, "Payment e30, Payment e30"], ids=["none", "long", "two"])
def test_what_is_no_payment_at_all(value):
    answer = httpx.post(CHAT, json=ask(), headers={"authorization": value})
    assert problem(answer)[:2] == (400, "malformed-credential")
