// ethers against the node's `/`, as against any Ethereum node.
import assert from "node:assert/strict";
import { after, describe, test } from "node:test";
import {
  Contract,
  JsonRpcProvider,
  NonceManager,
  Signature,
  Wallet,
  ZeroAddress,
  ZeroHash,
  isError,
  toUtf8Bytes,
} from "ethers";

import { DRIP, STAKE, TNZO, contracts, eventually, info, node, sleep, tokenDomain, unique } from "./support.mjs";

const provider = new JsonRpcProvider(node.url, undefined, { cacheTimeout: -1 });
provider.pollingInterval = 30;
after(() => provider.destroy());

const at = ({ address, abi }, runner = provider) => new Contract(address, abi, runner);
const tnzo = at(contracts.tnzo);
const registry = at(contracts.registry);

async function newWallet({ funded = true } = {}) {
  const wallet = new Wallet(Wallet.createRandom().privateKey, provider);
  if (funded) {
    const sent = await at(contracts.faucet, wallet).drip(wallet.address);
    assert.equal((await sent.wait()).status, 1);
  }
  return wallet;
}

/** The contract's own error of a promise that fails; ethers leaves those of estimates to its caller. */
async function revertOf(promise, contract = tnzo) {
  const error = await promise.then(
    () => assert.fail("it worked"),
    (error) => error,
  );
  assert.ok(isError(error, "CALL_EXCEPTION"), String(error));
  const revert = error.revert ?? contract.interface.parseError(error.data);
  assert.ok(revert, error.message);
  return [revert.name, ...revert.args];
}

describe("chain", () => {
  test("network, blocks, code, fees", async () => {
    const network = await provider.getNetwork();
    assert.equal(network.chainId, BigInt(info.chain_id));
    assert.ok((await provider.getBlockNumber()) >= 5);
    assert.ok((await provider.getCode(tnzo)).length > 1000);
    assert.equal(await provider.getCode(ZeroAddress), "0x");
    const fees = await provider.getFeeData();
    assert.equal(fees.gasPrice, 0n);
    const genesis = await provider.getBlock(0);
    assert.equal(genesis.parentHash, ZeroHash);
    assert.equal(await provider.getBlock(10 ** 9), null);
    assert.equal(await provider.getTransaction(`0x${"11".repeat(32)}`), null);
    assert.equal(await provider.getTransactionReceipt(`0x${"11".repeat(32)}`), null);
    assert.equal(await tnzo.symbol(), "TNZO");
  });

  test("a block with its transactions", async () => {
    const wallet = await newWallet();
    const sent = await tnzo.connect(wallet).transfer(registry, 5n);
    const receipt = await sent.wait();
    const block = await provider.getBlock(receipt.blockNumber, true);
    assert.equal(block.hash, receipt.blockHash);
    assert.equal(block.length, 1);
    assert.equal(block.prefetchedTransactions[0].hash, sent.hash);
    assert.equal(block.prefetchedTransactions[0].from, wallet.address);
    const transaction = await provider.getTransaction(sent.hash);
    assert.equal(transaction.data, sent.data);
    assert.equal(transaction.blockNumber, receipt.blockNumber);
    assert.equal((await block.getTransaction(0)).hash, sent.hash);
    assert.equal(await receipt.confirmations() >= 1, true);
    assert.equal((await receipt.getBlock()).hash, block.hash);
  });
});

describe("TNZO", () => {
  test("faucet, balance, send, wait; gas costs nothing", async () => {
    const wallet = await newWallet();
    const to = (await newWallet({ funded: false })).address;
    assert.equal(await tnzo.balanceOf(wallet), DRIP);
    const gas = await tnzo.connect(wallet).transfer.estimateGas(to, TNZO);
    const sent = await tnzo.connect(wallet).transfer(to, TNZO);
    const receipt = await sent.wait(1, 5_000);
    assert.equal(receipt.status, 1);
    assert.ok(gas >= receipt.gasUsed && gas < receipt.gasUsed * 2n);
    assert.equal(receipt.fee, 0n);
    assert.equal(await tnzo.balanceOf(to), TNZO);
    assert.equal(await provider.getBalance(wallet), 0n);
    const [log] = receipt.logs;
    assert.equal(log.fragment.name, "Transfer");
    assert.deepEqual(log.args.toArray(), [wallet.address, to, TNZO]);
    const before = { blockTag: receipt.blockNumber - 1 };
    assert.equal(await tnzo.balanceOf(wallet, before), DRIP);
    assert.equal(await tnzo.balanceOf(to, before), 0n);
  });

  test("waiting for more confirmations ends when there are more blocks", async () => {
    const wallet = await newWallet();
    const sent = await tnzo.connect(wallet).transfer(wallet, 1n);
    const waiting = sent.wait(3, 10_000);
    await (await tnzo.connect(wallet).transfer(wallet, 1n)).wait();
    await (await tnzo.connect(wallet).transfer(wallet, 1n)).wait();
    assert.equal((await waiting).status, 1);
  });

  test("errors of contracts are decoded", async () => {
    const wallet = await newWallet();
    const own = tnzo.connect(wallet);
    const refusal = ["ERC20InsufficientBalance", wallet.address, DRIP, DRIP + 1n];
    assert.deepEqual(await revertOf(own.transfer.staticCall(registry, DRIP + 1n)), refusal);
    assert.deepEqual(await revertOf(own.transfer.estimateGas(registry, DRIP + 1n)), refusal);
    assert.deepEqual(await revertOf(own.transfer(registry, DRIP + 1n)), refusal);
    const drip = at(contracts.faucet, wallet).drip(wallet.address);
    assert.equal((await revertOf(drip, at(contracts.faucet)))[0], "TooSoon");
    // Mined and failed: wait() rejects, with the receipt.
    const sent = await own.transfer(registry, DRIP + 1n, { gasLimit: 100_000n });
    await assert.rejects(sent.wait(), (error) => {
      assert.ok(isError(error, "CALL_EXCEPTION"));
      assert.equal(error.receipt.status, 0);
      return true;
    });
    assert.equal(await tnzo.balanceOf(wallet), DRIP);
  });

  test("what cannot be sent has ethers' codes", async () => {
    const wallet = await newWallet();
    const send = (overrides) => tnzo.connect(wallet).transfer(wallet, 1n, { gasLimit: 100_000n, ...overrides });
    await assert.rejects(send({ nonce: 0 }), { code: "NONCE_EXPIRED" });
    await assert.rejects(wallet.sendTransaction({ to: wallet, value: 1n, gasLimit: 50_000n }), {
      code: "INSUFFICIENT_FUNDS",
    });
    assert.equal(await wallet.getNonce(), 1);
  });

  test("many sends at once, their nonces kept by NonceManager", async () => {
    const wallet = await newWallet();
    const to = (await newWallet({ funded: false })).address;
    const managed = tnzo.connect(new NonceManager(wallet));
    const sent = await Promise.all(Array.from({ length: 20 }, () => managed.transfer(to, TNZO)));
    const receipts = await Promise.all(sent.map((one) => one.wait()));
    assert.ok(receipts.every((receipt) => receipt.status === 1));
    assert.equal(await tnzo.balanceOf(to), 20n * TNZO);
  });

  test("ERC-2612 and ERC-3009 by typed data", async () => {
    const owner = await newWallet();
    const other = await newWallet({ funded: false });
    const domain = await tokenDomain();
    const fields = (...list) => list.map((one) => one.split(" ")).map(([type, name]) => ({ type, name }));
    const permit = fields(
      "address owner",
      "address spender",
      "uint256 value",
      "uint256 nonce",
      "uint256 deadline",
    );
    const deadline = 2n ** 40n;
    const message = { owner: owner.address, spender: other.address, value: 3n, nonce: 0n, deadline };
    const { v, r, s } = Signature.from(await owner.signTypedData(domain, { Permit: permit }, message));
    const call = tnzo.connect(other).permit(owner, other, 3n, deadline, v, r, s);
    await (await call).wait();
    assert.equal(await tnzo.allowance(owner, other), 3n);
    await (await tnzo.connect(other).transferFrom(owner, other, 3n)).wait();

    const transfer = fields(
      "address from",
      "address to",
      "uint256 value",
      "uint256 validAfter",
      "uint256 validBefore",
      "bytes32 nonce",
    );
    const nonce = `0x${"0a".repeat(32)}`;
    const moved = { from: owner.address, to: other.address, value: 4n, validAfter: 0n, validBefore: deadline, nonce };
    const signature = await owner.signTypedData(domain, { TransferWithAuthorization: transfer }, moved);
    const packed = "transferWithAuthorization(address,address,uint256,uint256,uint256,bytes32,bytes)";
    await (await tnzo.connect(other)[packed](...Object.values(moved), signature)).wait();
    assert.equal(await tnzo.balanceOf(other), 7n);
    const again = tnzo.connect(other)[packed].staticCall(...Object.values(moved), signature);
    assert.deepEqual(await revertOf(again), ["ERC3009UsedAuthorization", owner.address, nonce]);
  });
});

describe("registry and events", () => {
  test("register, stake, price, serve; queryFilter and views", async () => {
    const wallet = await newWallet();
    const own = registry.connect(wallet);
    const model = unique("ethers-model");
    const from = await provider.getBlockNumber();
    await (await own.register(1, "ethers")).wait();
    await (await tnzo.connect(wallet).approve(registry, STAKE)).wait();
    await (await own.stake(STAKE)).wait();
    const encode = (name, args) => registry.interface.encodeFunctionData(name, args);
    const calls = [
      encode("serveModel", [model, ZeroHash, "http://127.0.0.1:9/v1", "{}"]),
      encode("setPricing", [model, 1n, 2n]),
    ];
    const receipt = await (await own.multicall(calls)).wait();
    const names = receipt.logs.map((log) => log.fragment.name);
    assert.deepEqual(names, ["ModelServed", "PricingSet"]);
    const id = receipt.logs[0].args.endpointId;
    assert.equal(await registry.isActive(id), true);
    const page = await registry.endpointsByModel(model, 0, 10);
    assert.equal(page.length, 1);
    assert.equal(page[0].provider, wallet.address);
    assert.equal(page[0].pricing.outputPrice, 2n);
    const served = await registry.queryFilter(registry.filters.ModelServed(null, wallet), from);
    assert.deepEqual(served.map((log) => log.args.endpointId), [id]);
    const staked = await registry.queryFilter("Staked", from, "latest");
    assert.ok(staked.some((log) => log.args.provider === wallet.address));
    const none = await registry.queryFilter(registry.filters.ModelServed(ZeroHash), 0);
    assert.deepEqual(none, []);
    const stranger = registry.connect(await newWallet({ funded: false }));
    const refusal = await revertOf(stranger.stopModel(id), registry);
    assert.deepEqual(refusal.slice(0, 2), ["NotEndpointOwner", id]);
  });

  test("contract.on, once, and blocks", async () => {
    const wallet = await newWallet();
    const own = tnzo.connect(wallet);
    const to = (await newWallet({ funded: false })).address;
    const seen = [];
    const blocks = [];
    let once = 0;
    const onBlock = (number) => blocks.push(number);
    await tnzo.on(tnzo.filters.Transfer(wallet.address), (event) => {
      seen.push([...event.args, event.log.transactionHash]);
    });
    await tnzo.once("Transfer", () => {
      once += 1;
    });
    await provider.on("block", onBlock);
    try {
      await sleep(200);
      const sent = [await own.transfer(to, 1n), await own.transfer(to, 2n)];
      const receipts = await Promise.all(sent.map((one) => one.wait()));
      await eventually(() => seen.length >= 2 && blocks.includes(receipts[1].blockNumber), "both events");
      await sleep(200);
      const expected = sent.map((one, i) => [wallet.address, to, BigInt(i + 1), one.hash]);
      assert.deepEqual(seen, expected);
      assert.equal(once, 1);
    } finally {
      await tnzo.removeAllListeners();
      await provider.off("block", onBlock);
    }
  });

  test("the same with polling for logs instead of filters", async () => {
    const polling = new JsonRpcProvider(node.url, undefined, { polling: true, pollingInterval: 30 });
    try {
      const wallet = await newWallet();
      const seen = [];
      const watched = at(contracts.tnzo, polling);
      await watched.on("Transfer", (from, _to, value) => from === wallet.address && seen.push(value));
      await sleep(200);
      await (await tnzo.connect(wallet).transfer(registry, 11n)).wait();
      await eventually(() => seen.length === 1, "the event");
      assert.deepEqual(seen, [11n]);
      await watched.removeAllListeners();
    } finally {
      polling.destroy();
    }
  });

  test("messages and typed data are signed here, not by the node", async () => {
    await assert.rejects(provider.send("eth_sign", [ZeroAddress, "0x00"]));
    await assert.rejects(provider.send("personal_sign", ["0x00", ZeroAddress]));
    assert.deepEqual(await provider.listAccounts(), []);
    const wallet = await newWallet({ funded: false });
    assert.match(await wallet.signMessage(toUtf8Bytes("x")), /^0x[0-9a-f]{130}$/);
  });
});
