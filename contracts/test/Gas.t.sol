// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

import {PaymentChannels} from "../src/PaymentChannels.sol";
import {ProviderRegistry} from "../src/ProviderRegistry.sol";
import {Base} from "./support/Base.sol";

/// @notice What each transaction costs, in .gas-snapshot: one call a test, everything else done before. With
/// `--isolate` each call is a transaction of its own, with its 21,000 and its call data. Preparing the call
/// is not measured.
contract GasTest is Base {
    ProviderRegistry.Role private constant PROVIDER = ProviderRegistry.Role.ModelProvider;
    string private constant URL = "https://models.example.org/v1";

    bytes32 private id;
    bytes32 private requested;
    bytes private first;
    bytes private second;
    bytes private settling;
    bytes private opening;
    bytes32 private openingNonce;
    bytes private topping;
    bytes32 private toppingNonce;
    bytes private transferring;
    bytes32 private endpoint;
    PaymentChannels.Settlement[] private rows;

    function setUp() public {
        deployAll();
        token.transfer(address(faucet), 1e24);
        token.transfer(bob, 1);
        token.transfer(TREASURY, 1);
        fund(alice, 100 * MINIMUM);
        fund(carol, 100 * MINIMUM);
        id = openChannel(1e18, "a");
        requested = openChannel(1e18, "requested");
        vm.prank(alice);
        channels.requestClose(requested);
        first = voucher(ALICE_KEY, id, 1e15);
        settling = payeeAuthorization(BOB_KEY, "Settle", id, 1e15, 1, FOR_EVER);
        openingNonce = keccak256(abi.encode(alice, bob, address(token), bytes32("c"), address(0)));
        opening = deposit3009(ALICE_KEY, 1e18, openingNonce);
        toppingNonce = keccak256(abi.encode(id, uint128(1e18), alice, bytes32("t")));
        topping = deposit3009(ALICE_KEY, 1e18, toppingNonce);
        transferring = pack(ALICE_KEY, transferDigest("Transfer", alice, bob, 5, 0, FOR_EVER, "t"));
        bytes32 used = openChannel(1e18, "used");
        vm.prank(bob);
        channels.settle(used, 1, voucher(ALICE_KEY, used, 1));
        second = voucher(ALICE_KEY, used, 1e15);
        for (uint256 i = 0; i < 10; ++i) {
            bytes32 one = openChannel(1e18, bytes32(i + 1));
            rows.push(PaymentChannels.Settlement(one, 1e15, voucher(ALICE_KEY, one, 1e15)));
        }

        vm.startPrank(carol);
        registry.register(PROVIDER, "Carol");
        registry.stake(2 * MINIMUM);
        registry.requestUnstake(1);
        registry.setPricing("gemma3-270m", 1e14, 1e14);
        endpoint = registry.serveModel("gemma3-270m", keccak256("file"), URL, "{}");
        vm.stopPrank();
        vm.warp(START + UNBONDING);
    }

    function measure(address who, address target, bytes memory call) private {
        vm.prank(who);
        vm.resumeGasMetering();
        (bool isDone,) = target.call(call);
        vm.pauseGasMetering();
        vm.assertTrue(isDone);
        vm.resumeGasMetering();
    }

    modifier unmeasured() {
        vm.pauseGasMetering();
        _;
    }

    function test_channels_open() public unmeasured {
        measure(
            alice,
            address(channels),
            abi.encodeCall(channels.open, (bob, address(token), 1e18, "b", address(0)))
        );
    }

    function test_channels_openWithAuthorization() public unmeasured {
        measure(
            address(this),
            address(channels),
            abi.encodeCall(
                channels.openWithAuthorization,
                (bob, address(token), 1e18, "c", address(0), alice, 0, FOR_EVER, openingNonce, opening)
            )
        );
    }

    function test_channels_topUp() public unmeasured {
        measure(alice, address(channels), abi.encodeCall(channels.topUp, (id, 1e18)));
    }

    function test_channels_topUpWithAuthorization() public unmeasured {
        measure(
            address(this),
            address(channels),
            abi.encodeCall(
                channels.topUpWithAuthorization, (id, 1e18, alice, "t", 0, FOR_EVER, toppingNonce, topping)
            )
        );
    }

    function test_channels_settle_first() public unmeasured {
        measure(bob, address(channels), abi.encodeCall(channels.settle, (id, 1e15, first)));
    }

    function test_channels_settle_again() public unmeasured {
        bytes32 used = idOf(alice, bob, "used", address(0));
        measure(bob, address(channels), abi.encodeCall(channels.settle, (used, 1e15, second)));
    }

    function test_channels_settleBatch_of10() public unmeasured {
        measure(bob, address(channels), abi.encodeCall(channels.settleBatch, (rows)));
    }

    function test_channels_settleWithAuthorization() public unmeasured {
        measure(
            address(this),
            address(channels),
            abi.encodeCall(channels.settleWithAuthorization, (id, 1e15, 1, FOR_EVER, settling, first))
        );
    }

    function test_channels_close() public unmeasured {
        measure(bob, address(channels), abi.encodeCall(channels.close, (id, 1e15, first)));
    }

    function test_channels_requestClose() public unmeasured {
        measure(alice, address(channels), abi.encodeCall(channels.requestClose, (id)));
    }

    function test_channels_withdraw() public unmeasured {
        measure(alice, address(channels), abi.encodeCall(channels.withdraw, (requested)));
    }

    function test_registry_register() public unmeasured {
        measure(alice, address(registry), abi.encodeCall(registry.register, (PROVIDER, "Alice")));
    }

    function test_registry_deregister() public unmeasured {
        measure(carol, address(registry), abi.encodeCall(registry.deregister, ()));
    }

    function test_registry_stake() public unmeasured {
        measure(alice, address(registry), abi.encodeCall(registry.stake, (MINIMUM)));
    }

    function test_registry_requestUnstake() public unmeasured {
        measure(carol, address(registry), abi.encodeCall(registry.requestUnstake, (MINIMUM)));
    }

    function test_registry_withdrawStake() public unmeasured {
        measure(carol, address(registry), abi.encodeCall(registry.withdrawStake, ()));
    }

    function test_registry_slash() public unmeasured {
        measure(ARBITER, address(registry), abi.encodeCall(registry.slash, (carol, MINIMUM, "evidence")));
    }

    function test_registry_serveModel() public unmeasured {
        measure(
            alice,
            address(registry),
            abi.encodeCall(registry.serveModel, ("gemma3-270m", keccak256("file"), URL, "{}"))
        );
    }

    function test_registry_serveModel_again() public unmeasured {
        measure(
            carol,
            address(registry),
            abi.encodeCall(registry.serveModel, ("gemma3-270m", keccak256("file2"), URL, "{}"))
        );
    }

    function test_registry_updateEndpoint() public unmeasured {
        measure(
            carol,
            address(registry),
            abi.encodeCall(registry.updateEndpoint, (endpoint, keccak256("file2"), "{}"))
        );
    }

    function test_registry_stopModel() public unmeasured {
        measure(carol, address(registry), abi.encodeCall(registry.stopModel, (endpoint)));
    }

    function test_registry_setPricing_first() public unmeasured {
        measure(alice, address(registry), abi.encodeCall(registry.setPricing, ("gemma3-270m", 1e14, 1e14)));
    }

    function test_registry_setPricing_rise() public unmeasured {
        measure(carol, address(registry), abi.encodeCall(registry.setPricing, ("gemma3-270m", 2e14, 2e14)));
    }

    function test_registry_setSchedule() public unmeasured {
        measure(
            alice, address(registry), abi.encodeCall(registry.setSchedule, ("Europe/Vienna", 0, 1440, 127))
        );
    }

    function test_tnzo_transfer() public unmeasured {
        measure(alice, address(token), abi.encodeCall(token.transfer, (bob, 5)));
    }

    function test_tnzo_transferWithAuthorization() public unmeasured {
        measure(
            address(this),
            address(token),
            abi.encodeWithSignature(
                "transferWithAuthorization(address,address,uint256,uint256,uint256,bytes32,bytes)",
                alice,
                bob,
                5,
                0,
                FOR_EVER,
                bytes32("t"),
                transferring
            )
        );
    }

    function test_faucet_drip() public unmeasured {
        measure(address(this), address(faucet), abi.encodeCall(faucet.drip, (address(0xFAce))));
    }
}
