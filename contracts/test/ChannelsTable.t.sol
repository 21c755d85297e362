// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

import {PaymentChannels} from "../src/PaymentChannels.sol";
import {Vouchers} from "../src/Vouchers.sol";
import {Base} from "./support/Base.sol";

/// @notice Every function of a channel, by every kind of caller, in every state: done or refused, and with
/// which error. The table is written out, so that nothing is derived from the code it tests.
contract ChannelsTableTest is Base {
    enum State {
        None,
        Open,
        Requested,
        GraceOver,
        Closed,
        Withdrawn
    }

    bytes32 private constant SALT = keccak256("salt");
    bytes4 private constant OK = bytes4(0);
    bytes4 private constant NOT_FOUND = PaymentChannels.ChannelNotFound.selector;
    bytes4 private constant FINALIZED = PaymentChannels.ChannelFinalized.selector;
    bytes4 private constant PAYER = PaymentChannels.NotPayer.selector;
    bytes4 private constant PAYEE = PaymentChannels.NotPayee.selector;
    bytes4 private constant NOT_READY = PaymentChannels.CloseNotReady.selector;
    bytes4 private constant EXISTS = PaymentChannels.ChannelAlreadyExists.selector;

    bytes32 private id;

    function setUp() public {
        deployAll();
        fund(alice, 10_000);
        fund(carol, 10_000);
        id = idOf(alice, bob, SALT, address(0));
    }

    /// `expected`: one for each state, where the caller is the payer, the payee, a stranger.
    function check(
        bytes memory call,
        bytes4[6] memory payer,
        bytes4[6] memory payee,
        bytes4[6] memory stranger
    ) private {
        for (uint8 i = 0; i < 6; ++i) {
            check(call, State(i), alice, payer[i]);
            check(call, State(i), bob, payee[i]);
            check(call, State(i), carol, stranger[i]);
        }
    }

    function check(bytes memory call, State state, address caller, bytes4 expected) private {
        uint256 before = vm.snapshotState();
        bring(state);
        bytes memory channelBefore = abi.encode(channels.getChannel(id));
        uint256 heldBefore = token.balanceOf(address(channels));
        vm.prank(caller);
        (bool isDone, bytes memory result) = address(channels).call(call);
        if (expected == OK) {
            vm.assertTrue(isDone, "should be done");
        } else {
            vm.assertFalse(isDone, "should be refused");
            vm.assertEq(result, abi.encodePacked(expected));
            vm.assertEq(abi.encode(channels.getChannel(id)), channelBefore);
            vm.assertEq(token.balanceOf(address(channels)), heldBefore);
        }
        vm.revertToState(before);
    }

    function bring(State state) private {
        if (state == State.None) return;
        openChannel(1000, SALT);
        if (state == State.Open) return;
        if (state == State.Closed) {
            vm.prank(bob);
            channels.close(id, 10, voucher(ALICE_KEY, id, 10));
            return;
        }
        vm.prank(alice);
        channels.requestClose(id);
        if (state == State.Requested) return;
        vm.warp(START + GRACE);
        if (state == State.GraceOver) return;
        vm.prank(alice);
        channels.withdraw(id);
    }

    function test_settle() public {
        check(
            abi.encodeCall(channels.settle, (id, 100, voucher(ALICE_KEY, id, 100))),
            [NOT_FOUND, PAYEE, PAYEE, PAYEE, FINALIZED, FINALIZED],
            [NOT_FOUND, OK, OK, OK, FINALIZED, FINALIZED],
            [NOT_FOUND, PAYEE, PAYEE, PAYEE, FINALIZED, FINALIZED]
        );
    }

    function test_close() public {
        check(
            abi.encodeCall(channels.close, (id, 100, voucher(ALICE_KEY, id, 100))),
            [NOT_FOUND, PAYEE, PAYEE, PAYEE, FINALIZED, FINALIZED],
            [NOT_FOUND, OK, OK, OK, FINALIZED, FINALIZED],
            [NOT_FOUND, PAYEE, PAYEE, PAYEE, FINALIZED, FINALIZED]
        );
    }

    function test_close_forfeit() public {
        check(
            abi.encodeCall(channels.close, (id, 0, "")),
            [NOT_FOUND, PAYEE, PAYEE, PAYEE, FINALIZED, FINALIZED],
            [NOT_FOUND, OK, OK, OK, FINALIZED, FINALIZED],
            [NOT_FOUND, PAYEE, PAYEE, PAYEE, FINALIZED, FINALIZED]
        );
    }

    function test_settleWithAuthorization() public {
        bytes4[6] memory all = [NOT_FOUND, OK, OK, OK, FINALIZED, FINALIZED];
        bytes memory ofPayee = payeeAuthorization(BOB_KEY, "Settle", id, 100, 1, FOR_EVER);
        bytes memory ofPayer = voucher(ALICE_KEY, id, 100);
        check(
            abi.encodeCall(channels.settleWithAuthorization, (id, 100, 1, FOR_EVER, ofPayee, ofPayer)),
            all,
            all,
            all
        );
    }

    function test_closeWithAuthorization() public {
        bytes4[6] memory all = [NOT_FOUND, OK, OK, OK, FINALIZED, FINALIZED];
        bytes memory ofPayee = payeeAuthorization(BOB_KEY, "Close", id, 100, 1, FOR_EVER);
        bytes memory ofPayer = voucher(ALICE_KEY, id, 100);
        check(
            abi.encodeCall(channels.closeWithAuthorization, (id, 100, 1, FOR_EVER, ofPayee, ofPayer)),
            all,
            all,
            all
        );
    }

    function test_topUp() public {
        check(
            abi.encodeCall(channels.topUp, (id, 5)),
            [NOT_FOUND, OK, OK, OK, FINALIZED, FINALIZED],
            [NOT_FOUND, PAYER, PAYER, PAYER, FINALIZED, FINALIZED],
            [NOT_FOUND, PAYER, PAYER, PAYER, FINALIZED, FINALIZED]
        );
    }

    function test_topUpWithAuthorization() public {
        bytes4[6] memory all = [NOT_FOUND, OK, OK, OK, FINALIZED, FINALIZED];
        bytes32 nonce = keccak256(abi.encode(id, uint128(5), alice, SALT));
        bytes memory signature = deposit3009(ALICE_KEY, 5, nonce);
        check(
            abi.encodeCall(
                channels.topUpWithAuthorization, (id, 5, alice, SALT, 0, FOR_EVER, nonce, signature)
            ),
            all,
            all,
            all
        );
    }

    function test_requestClose() public {
        check(
            abi.encodeCall(channels.requestClose, (id)),
            [NOT_FOUND, OK, OK, OK, FINALIZED, FINALIZED],
            [NOT_FOUND, PAYER, PAYER, PAYER, FINALIZED, FINALIZED],
            [NOT_FOUND, PAYER, PAYER, PAYER, FINALIZED, FINALIZED]
        );
    }

    function test_attack09_withdraw() public {
        check(
            abi.encodeCall(channels.withdraw, (id)),
            [NOT_FOUND, NOT_READY, NOT_READY, OK, FINALIZED, FINALIZED],
            [NOT_FOUND, PAYER, PAYER, PAYER, FINALIZED, FINALIZED],
            [NOT_FOUND, PAYER, PAYER, PAYER, FINALIZED, FINALIZED]
        );
    }

    /// Others that open with the same parameters get a channel of their own.
    function test_attack04_open_again() public {
        bytes4[6] memory own = [OK, EXISTS, EXISTS, EXISTS, EXISTS, EXISTS];
        bytes memory call = abi.encodeCall(channels.open, (bob, address(token), 5, SALT, address(0)));
        for (uint8 i = 0; i < 6; ++i) {
            check(call, State(i), alice, own[i]);
            check(call, State(i), carol, OK);
        }
    }

    function test_attack04_openWithAuthorization_again() public {
        bytes4[6] memory all = [OK, EXISTS, EXISTS, EXISTS, EXISTS, EXISTS];
        bytes32 nonce = keccak256(abi.encode(alice, bob, address(token), SALT, address(0)));
        bytes memory signature = deposit3009(ALICE_KEY, 5, nonce);
        check(
            abi.encodeCall(
                channels.openWithAuthorization,
                (bob, address(token), 5, SALT, address(0), alice, 0, FOR_EVER, nonce, signature)
            ),
            all,
            all,
            all
        );
    }
}
