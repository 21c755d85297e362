// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

import {ReentrancyGuardTransient} from "@openzeppelin/contracts/utils/ReentrancyGuardTransient.sol";
import {SafeERC20} from "@openzeppelin/contracts/token/ERC20/utils/SafeERC20.sol";
import {ERC3009} from "@openzeppelin/contracts/token/ERC20/extensions/draft-ERC3009.sol";

import {PaymentChannels} from "../src/PaymentChannels.sol";
import {TNZO} from "../src/TNZO.sol";
import {Vouchers} from "../src/Vouchers.sol";
import {Base} from "./support/Base.sol";
import {EmptyToken, FalseToken, FeeToken, ReentrantToken, TestToken} from "./support/Tokens.sol";
import {GasBurner, Rejecting, Wallet} from "./support/Wallets.sol";

/// @notice Ways to take what is not one's own. The numbers are those of the threat list in contracts/README.md.
contract ChannelsAttacksTest is Base {
    bytes32 private constant SALT = keccak256("salt");
    bytes32 private id;

    function setUp() public {
        deployAll();
        fund(alice, 10_000);
        fund(carol, 10_000);
        id = openChannel(1000, SALT);
    }

    function settleRefused(bytes32 id_, uint128 amount, bytes memory signature, bytes4 why) private {
        vm.expectRevert(why);
        vm.prank(bob);
        channels.settle(id_, amount, signature);
    }

    // --- 1: one deposit spent twice ---------------------------------------------------------------

    /// A channel's voucher draws on its own deposit, however much the contract holds for others.
    function test_attack01_voucherBeyondTheDeposit() public {
        vm.prank(carol);
        channels.open(bob, address(token), 5000, SALT, address(0));
        bytes memory tooMuch = voucher(ALICE_KEY, id, 1001);
        settleRefused(id, 1001, tooMuch, PaymentChannels.AmountExceedsDeposit.selector);
        vm.expectRevert(PaymentChannels.AmountExceedsDeposit.selector);
        vm.prank(bob);
        channels.close(id, 1001, tooMuch);
    }

    function test_attack01_voucherByAnotherPayee() public {
        vm.prank(alice);
        bytes32 ofCarol = channels.open(carol, address(token), 1000, SALT, address(0));
        bytes memory forCarol = voucher(ALICE_KEY, ofCarol, 100);
        settleRefused(ofCarol, 100, forCarol, PaymentChannels.NotPayee.selector);
        settleRefused(id, 100, forCarol, Vouchers.InvalidSignature.selector);
    }

    // --- 3: other chain, other contract, other version --------------------------------------------

    function test_attack03_voucherOfAnotherChain() public {
        bytes memory here = voucher(ALICE_KEY, id, 100);
        vm.chainId(block.chainid + 1);
        settleRefused(id, 100, here, Vouchers.InvalidSignature.selector);
    }

    function test_attack03_voucherOfAnotherDeployment() public {
        bytes memory here = voucher(ALICE_KEY, id, 100);
        channels = deployChannels(address(token));
        vm.prank(alice);
        token.approve(address(channels), 1000);
        bytes32 there = openChannel(1000, SALT);
        vm.assertTrue(there != id);
        settleRefused(there, 100, here, Vouchers.InvalidSignature.selector);
    }

    function test_attack03_voucherOfAnotherDomain() public {
        bytes32[3] memory domains = [
            domain("EVM Payment Channel", block.chainid, address(token)),
            domain("Tenzro", block.chainid, address(channels)),
            keccak256(
                abi.encode(
                    keccak256(
                        "EIP712Domain(string name,string version,uint256 chainId,address verifyingContract)"
                    ),
                    keccak256("EVM Payment Channel"),
                    keccak256("2"),
                    block.chainid,
                    address(channels)
                )
            )
        ];
        for (uint256 i = 0; i < domains.length; ++i) {
            bytes memory signature = pack(ALICE_KEY, voucherDigest(domains[i], id, 100));
            settleRefused(id, 100, signature, Vouchers.InvalidSignature.selector);
        }
    }

    // --- 4: other channel, or the same one opened again -------------------------------------------

    function test_attack04_voucherOfAnotherChannel() public {
        bytes32 other = openChannel(1000, "other");
        settleRefused(other, 100, voucher(ALICE_KEY, id, 100), Vouchers.InvalidSignature.selector);
    }

    function test_attack04_closedIdIsNeverFundedAgain() public {
        vm.prank(bob);
        channels.close(id, 0, "");
        vm.expectRevert(PaymentChannels.ChannelAlreadyExists.selector);
        openChannel(1000, SALT);
        vm.expectRevert(PaymentChannels.ChannelFinalized.selector);
        vm.prank(alice);
        channels.topUp(id, 1000);
        settleRefused(id, 100, voucher(ALICE_KEY, id, 100), PaymentChannels.ChannelFinalized.selector);
    }

    // --- 5: an old voucher as new money -----------------------------------------------------------

    function testFuzz_attack05_lowerOrEqualVoucher(uint128 first, uint128 second) public {
        first = uint128(bound(first, 1, 1000));
        second = uint128(bound(second, 0, first));
        vm.prank(bob);
        channels.settle(id, first, voucher(ALICE_KEY, id, first));
        settleRefused(
            id, second, voucher(ALICE_KEY, id, second), PaymentChannels.AmountNotIncreasing.selector
        );
    }

    function test_attack05_oldVoucherAfterTopUp() public {
        bytes memory all = voucher(ALICE_KEY, id, 1000);
        vm.prank(bob);
        channels.settle(id, 1000, all);
        vm.prank(alice);
        channels.topUp(id, 1000);
        settleRefused(id, 1000, all, PaymentChannels.AmountNotIncreasing.selector);
        vm.prank(bob);
        channels.close(id, 1000, all);
        vm.assertEq(token.balanceOf(bob), 1000);
        vm.assertEq(token.balanceOf(alice), 9000);
    }

    function test_attack05_payeeAuthorizationTwice() public {
        bytes memory ofPayee = payeeAuthorization(BOB_KEY, "Settle", id, 100, 7, FOR_EVER);
        bytes memory ofPayer = voucher(ALICE_KEY, id, 100);
        channels.settleWithAuthorization(id, 100, 7, FOR_EVER, ofPayee, ofPayer);
        vm.expectRevert(Vouchers.NonceAlreadyUsed.selector);
        channels.settleWithAuthorization(id, 100, 7, FOR_EVER, ofPayee, ofPayer);

        bytes memory more = payeeAuthorization(BOB_KEY, "Settle", id, 200, 7, FOR_EVER);
        ofPayer = voucher(ALICE_KEY, id, 200);
        vm.expectRevert(Vouchers.NonceAlreadyUsed.selector);
        channels.settleWithAuthorization(id, 200, 7, FOR_EVER, more, ofPayer);
        // One set of nonces for settling and closing.
        bytes memory closing = payeeAuthorization(BOB_KEY, "Close", id, 200, 7, FOR_EVER);
        vm.expectRevert(Vouchers.NonceAlreadyUsed.selector);
        channels.closeWithAuthorization(id, 200, 7, FOR_EVER, closing, ofPayer);
    }

    function test_attack05_payeeAuthorizationForWhatWasSettled() public {
        bytes memory ofPayer = voucher(ALICE_KEY, id, 100);
        vm.prank(bob);
        channels.settle(id, 100, ofPayer);
        bytes memory ofPayee = payeeAuthorization(BOB_KEY, "Settle", id, 100, 7, FOR_EVER);
        vm.expectRevert(PaymentChannels.AmountNotIncreasing.selector);
        channels.settleWithAuthorization(id, 100, 7, FOR_EVER, ofPayee, ofPayer);
        // What failed used nothing up.
        vm.assertFalse(channels.payeeNonceUsed(id, 7));
        ofPayee = payeeAuthorization(BOB_KEY, "Settle", id, 1001, 7, FOR_EVER);
        ofPayer = voucher(ALICE_KEY, id, 1001);
        vm.expectRevert(PaymentChannels.AmountExceedsDeposit.selector);
        channels.settleWithAuthorization(id, 1001, 7, FOR_EVER, ofPayee, ofPayer);
    }

    function test_attack05_payeeAuthorizationLate() public {
        bytes memory ofPayee = payeeAuthorization(BOB_KEY, "Settle", id, 100, 7, START);
        bytes memory closing = payeeAuthorization(BOB_KEY, "Close", id, 100, 8, START);
        bytes memory ofPayer = voucher(ALICE_KEY, id, 100);
        vm.warp(START + 1);
        vm.expectRevert(Vouchers.AuthorizationExpired.selector);
        channels.settleWithAuthorization(id, 100, 7, START, ofPayee, ofPayer);
        vm.expectRevert(Vouchers.AuthorizationExpired.selector);
        channels.closeWithAuthorization(id, 100, 8, START, closing, ofPayer);
    }

    /// To settle is not to close, and one amount, nonce or deadline is not another.
    function test_attack05_payeeAuthorizationForSomethingElse() public {
        bytes memory settling = payeeAuthorization(BOB_KEY, "Settle", id, 100, 7, FOR_EVER);
        bytes memory ofPayer = voucher(ALICE_KEY, id, 100);
        bytes memory less = voucher(ALICE_KEY, id, 99);
        vm.expectRevert(Vouchers.InvalidSignature.selector);
        channels.closeWithAuthorization(id, 100, 7, FOR_EVER, settling, ofPayer);
        vm.expectRevert(Vouchers.InvalidSignature.selector);
        channels.settleWithAuthorization(id, 99, 7, FOR_EVER, settling, less);
        vm.expectRevert(Vouchers.InvalidSignature.selector);
        channels.settleWithAuthorization(id, 100, 8, FOR_EVER, settling, ofPayer);
        vm.expectRevert(Vouchers.InvalidSignature.selector);
        channels.settleWithAuthorization(id, 100, 7, FOR_EVER - 1, settling, ofPayer);
        // Nor is the payer's voucher missing, or the payee's signature somebody else's.
        vm.expectRevert(Vouchers.InvalidSignature.selector);
        channels.settleWithAuthorization(id, 100, 7, FOR_EVER, settling, "");
        bytes memory byCarol = payeeAuthorization(CAROL_KEY, "Settle", id, 100, 7, FOR_EVER);
        vm.expectRevert(Vouchers.InvalidSignature.selector);
        channels.settleWithAuthorization(id, 100, 7, FOR_EVER, byCarol, ofPayer);
        vm.assertFalse(channels.payeeNonceUsed(id, 7));
    }

    /// Nobody closes a channel at the payee's cost with an amount that the payee did not sign.
    function test_attack05_forfeitNeedsThePayee() public {
        vm.expectRevert(Vouchers.InvalidSignature.selector);
        channels.closeWithAuthorization(id, 0, 7, FOR_EVER, "", "");
    }

    // --- 6: signatures ----------------------------------------------------------------------------

    function test_attack06_flippedS() public {
        bytes memory flipped = flip(voucher(ALICE_KEY, id, 100));
        settleRefused(id, 100, flipped, Vouchers.InvalidSignature.selector);
        vm.expectRevert(Vouchers.InvalidSignature.selector);
        vm.prank(bob);
        channels.close(id, 100, flipped);
        bytes memory payeeFlipped = flip(payeeAuthorization(BOB_KEY, "Settle", id, 100, 7, FOR_EVER));
        bytes memory ofPayer = voucher(ALICE_KEY, id, 100);
        vm.expectRevert(Vouchers.InvalidSignature.selector);
        channels.settleWithAuthorization(id, 100, 7, FOR_EVER, payeeFlipped, ofPayer);
    }

    function test_attack06_otherLengthsAndV() public {
        (uint8 v, bytes32 r, bytes32 s) = unpack(voucher(ALICE_KEY, id, 100));
        bytes32 compact = bytes32(uint256(s) | (v == 28 ? uint256(1) << 255 : 0));
        bytes[5] memory bad = [
            abi.encodePacked(r, compact),
            abi.encodePacked(r, s, v - 27),
            abi.encodePacked(r, s, v, uint8(0)),
            abi.encodePacked(r, s),
            bytes("")
        ];
        for (uint256 i = 0; i < bad.length; ++i) {
            settleRefused(id, 100, bad[i], Vouchers.InvalidSignature.selector);
        }
    }

    function testFuzz_attack06_garbage(bytes calldata garbage) public {
        settleRefused(id, 100, garbage, Vouchers.InvalidSignature.selector);
    }

    function testFuzz_attack06_garbageOf65(bytes32 r, bytes32 s, uint8 v) public {
        settleRefused(id, 100, abi.encodePacked(r, s, v), Vouchers.InvalidSignature.selector);
    }

    /// A signature that recovers to nobody is not by a payee that is nobody.
    function test_attack06_zeroAddress() public {
        vm.prank(alice);
        bytes32 toNobody = channels.open(address(0), address(token), 1000, SALT, address(0));
        bytes memory ofPayer = voucher(ALICE_KEY, toNobody, 100);
        vm.expectRevert(Vouchers.InvalidSignature.selector);
        channels.settleWithAuthorization(toNobody, 100, 1, FOR_EVER, new bytes(65), ofPayer);
        bytes32 nonce = keccak256(abi.encode(address(0), bob, address(token), SALT, address(0)));
        vm.expectRevert(ERC3009.ERC3009InvalidSignature.selector);
        channels.openWithAuthorization(
            bob, address(token), 5, SALT, address(0), address(0), 0, FOR_EVER, nonce, new bytes(65)
        );
    }

    /// The payer sets code on its account (EIP-7702) after it signed: the payee is paid all the same.
    function test_attack06_payerTakesItsKeyBack() public {
        bytes memory signature = voucher(ALICE_KEY, id, 100);
        vm.etch(alice, type(Rejecting).runtimeCode);
        vm.prank(bob);
        channels.settle(id, 100, signature);
        vm.assertEq(token.balanceOf(bob), 100);
        PaymentChannels.Settlement[] memory rows = new PaymentChannels.Settlement[](1);
        rows[0] = PaymentChannels.Settlement(id, 150, voucher(ALICE_KEY, id, 150));
        vm.prank(bob);
        vm.assertEq(channels.settleBatch(rows), 50);
    }

    /// A contract wallet can: providers take only keys as signers (see README).
    function test_attack06_walletTakesItsSignatureBack() public {
        Wallet wallet = new Wallet(carol);
        vm.prank(alice);
        bytes32 ofWallet = channels.open(bob, address(token), 1000, SALT, address(wallet));
        bytes memory signature = voucher(CAROL_KEY, ofWallet, 100);
        wallet.setOwner(alice);
        settleRefused(ofWallet, 100, signature, Vouchers.InvalidSignature.selector);
    }

    // --- 7: the payer leaves before it paid -------------------------------------------------------

    function test_attack07_settledInTheLastSecond() public {
        vm.prank(alice);
        channels.requestClose(id);
        vm.warp(START + GRACE - 1);
        vm.expectRevert(PaymentChannels.CloseNotReady.selector);
        vm.prank(alice);
        channels.withdraw(id);
        vm.prank(bob);
        channels.settle(id, 900, voucher(ALICE_KEY, id, 900));
        vm.warp(START + GRACE);
        vm.prank(alice);
        channels.withdraw(id);
        vm.assertEq(token.balanceOf(bob), 900);
        vm.assertEq(token.balanceOf(alice), 9100);
    }

    /// A request that a top-up took back does not count later.
    function test_attack07_oldRequestDoesNotShortenTheGracePeriod() public {
        vm.startPrank(alice);
        channels.requestClose(id);
        vm.warp(START + GRACE - 1);
        channels.topUp(id, 1);
        channels.requestClose(id);
        vm.warp(START + GRACE);
        vm.expectRevert(PaymentChannels.CloseNotReady.selector);
        channels.withdraw(id);
        vm.warp(START + 2 * uint256(GRACE) - 1);
        channels.withdraw(id);
        vm.stopPrank();
    }

    // --- 9: withdrawing without a request, early, twice; see also ChannelsTable -------------------

    function test_attack09_withdrawTwice() public {
        vm.prank(carol);
        channels.open(bob, address(token), 5000, SALT, address(0));
        vm.startPrank(alice);
        channels.requestClose(id);
        vm.warp(START + GRACE);
        channels.withdraw(id);
        vm.expectRevert(PaymentChannels.ChannelFinalized.selector);
        channels.withdraw(id);
        vm.expectRevert(PaymentChannels.ChannelFinalized.selector);
        channels.requestClose(id);
        vm.stopPrank();
        vm.assertEq(token.balanceOf(address(channels)), 5000);
    }

    // --- 10: tokens that are not what they seem ---------------------------------------------------

    function use(TestToken strange) private {
        token = TNZO(address(strange));
        channels = deployChannels(address(strange));
        strange.mint(alice, 10_000);
        vm.prank(alice);
        strange.approve(address(channels), type(uint256).max);
    }

    function openSigned(uint128 deposit) private returns (bytes32) {
        bytes32 nonce = keccak256(abi.encode(alice, bob, address(token), SALT, address(0)));
        return channels.openWithAuthorization(
            bob, address(token), deposit, SALT, address(0), alice, 0, FOR_EVER, nonce, ""
        );
    }

    function test_attack10_feeOnTransfer() public {
        use(new FeeToken());
        bytes memory inexact = abi.encodeWithSelector(PaymentChannels.InexactTransfer.selector, 1000, 990);
        vm.expectRevert(inexact);
        openChannel(1000, SALT);
        vm.expectRevert(inexact);
        openSigned(1000);
    }

    function test_attack10_movesNothing() public {
        use(new EmptyToken());
        vm.expectRevert(abi.encodeWithSelector(PaymentChannels.InexactTransfer.selector, 1000, 0));
        openChannel(1000, SALT);
    }

    function test_attack10_returnsFalse() public {
        FalseToken strange = new FalseToken();
        use(strange);
        bytes32 open = openChannel(1000, SALT);
        bytes memory signature = voucher(ALICE_KEY, open, 100);
        vm.prank(alice);
        channels.requestClose(open);
        strange.refuse(true);
        bytes memory failed =
            abi.encodeWithSelector(SafeERC20.SafeERC20FailedOperation.selector, address(strange));

        vm.expectRevert(failed);
        openChannel(1000, "again");
        vm.expectRevert(failed);
        vm.prank(alice);
        channels.topUp(open, 1000);
        vm.expectRevert(failed);
        vm.prank(bob);
        channels.settle(open, 100, signature);
        vm.expectRevert(failed);
        vm.prank(bob);
        channels.close(open, 100, signature);
        vm.warp(START + GRACE);
        vm.expectRevert(failed);
        vm.prank(alice);
        channels.withdraw(open);

        PaymentChannels.Channel memory channel = channels.getChannel(open);
        vm.assertEq(channel.deposit, 1000);
        vm.assertEq(channel.settled, 0);
        vm.assertFalse(channel.finalized);
    }

    /// The guard refuses every function that moves money while one is under way, and the outer call's
    /// outcome is what it would have been.
    function test_attack10_reentrancy() public {
        ReentrantToken strange = new ReentrantToken();
        use(strange);
        bytes32 open = openChannel(1000, SALT);
        bytes memory v1 = voucher(ALICE_KEY, open, 1);
        bytes memory v2 = voucher(ALICE_KEY, open, 500);
        bytes memory settling = payeeAuthorization(BOB_KEY, "Settle", open, 500, 1, FOR_EVER);
        bytes memory closing = payeeAuthorization(BOB_KEY, "Close", open, 500, 1, FOR_EVER);
        bytes32 n1 = keccak256(abi.encode(open, uint128(5), alice, SALT));
        bytes32 n2 = keccak256(abi.encode(alice, bob, address(token), bytes32("n"), address(0)));
        PaymentChannels.Settlement[] memory rows = new PaymentChannels.Settlement[](1);
        rows[0] = PaymentChannels.Settlement(open, 500, v2);
        bytes[10] memory inner = [
            abi.encodeCall(channels.open, (bob, address(token), 5, SALT, address(0))),
            abi.encodeCall(
                channels.openWithAuthorization,
                (bob, address(token), 5, "n", address(0), alice, 0, FOR_EVER, n2, "")
            ),
            abi.encodeCall(channels.topUp, (open, 5)),
            abi.encodeCall(channels.topUpWithAuthorization, (open, 5, alice, SALT, 0, FOR_EVER, n1, "")),
            abi.encodeCall(channels.settle, (open, 500, v2)),
            abi.encodeCall(channels.settleBatch, (rows)),
            abi.encodeCall(channels.settleWithAuthorization, (open, 500, 1, FOR_EVER, settling, v2)),
            abi.encodeCall(channels.close, (open, 500, v2)),
            abi.encodeCall(channels.closeWithAuthorization, (open, 500, 1, FOR_EVER, closing, v2)),
            abi.encodeCall(channels.withdraw, (open))
        ];
        for (uint256 i = 0; i < inner.length; ++i) {
            for (uint256 outer = 0; outer < 4; ++outer) {
                uint256 state = vm.snapshotState();
                if (outer == 3) {
                    vm.prank(alice);
                    channels.requestClose(open);
                    vm.warp(START + GRACE);
                }
                strange.arm(address(channels), inner[i]);
                if (outer == 0) {
                    vm.prank(alice);
                    channels.topUp(open, 1000);
                } else if (outer == 1) {
                    vm.prank(bob);
                    channels.settle(open, 1, v1);
                } else if (outer == 2) {
                    vm.prank(bob);
                    channels.close(open, 1, v1);
                } else {
                    vm.prank(alice);
                    channels.withdraw(open);
                }
                vm.assertTrue(strange.isCalled());
                vm.assertFalse(strange.isDone(), "reentered");
                vm.assertEq(
                    strange.result(),
                    abi.encodePacked(ReentrancyGuardTransient.ReentrancyGuardReentrantCall.selector)
                );
                uint256 held = token.balanceOf(address(channels));
                vm.assertEq(held, outer == 0 ? 2000 : outer == 1 ? 999 : 0);
                vm.revertToState(state);
            }
        }
    }

    // --- 17: being a nuisance ---------------------------------------------------------------------

    /// A signer that burns all gas costs a batch one row, not the batch.
    function test_attack17_gasBurnerInABatch() public {
        address burner = address(new GasBurner());
        vm.prank(alice);
        bytes32 ofBurner = channels.open(bob, address(token), 1000, SALT, burner);
        PaymentChannels.Settlement[] memory rows = new PaymentChannels.Settlement[](2);
        rows[0] = PaymentChannels.Settlement(ofBurner, 10, voucher(ALICE_KEY, ofBurner, 10));
        rows[1] = PaymentChannels.Settlement(id, 10, voucher(ALICE_KEY, id, 10));
        vm.prank(bob);
        vm.assertEq(channels.settleBatch{gas: 200_000}(rows), 10);
    }

    /// What is sent here without being put in is nobody's, and counts for nothing.
    function test_attack17_tokensSentDirectly() public {
        token.transfer(address(channels), 777);
        vm.prank(bob);
        channels.close(id, 10, voucher(ALICE_KEY, id, 10));
        vm.assertEq(token.balanceOf(address(channels)), 777);
    }

    /// A seen authorization opens the channel that it was signed for, or none.
    function test_attack17_frontRunAuthorization() public {
        bytes32 nonce = keccak256(abi.encode(alice, bob, address(token), bytes32("n"), address(0)));
        bytes memory signature = deposit3009(ALICE_KEY, 500, nonce);
        vm.startPrank(carol);
        bytes4 mismatch = PaymentChannels.NonceMismatch.selector;
        vm.expectRevert(mismatch);
        channels.openWithAuthorization(
            carol, address(token), 500, "n", address(0), alice, 0, FOR_EVER, nonce, signature
        );
        vm.expectRevert(mismatch);
        channels.openWithAuthorization(
            bob, address(token), 500, "n", carol, alice, 0, FOR_EVER, nonce, signature
        );
        vm.expectRevert(mismatch);
        channels.openWithAuthorization(
            bob, address(token), 500, "m", address(0), alice, 0, FOR_EVER, nonce, signature
        );
        vm.expectRevert(ERC3009.ERC3009InvalidSignature.selector);
        channels.openWithAuthorization(
            bob, address(token), 499, "n", address(0), alice, 0, FOR_EVER, nonce, signature
        );
        // Nor does it move past the channels.
        vm.expectRevert();
        token.receiveWithAuthorization(alice, address(channels), 500, 0, FOR_EVER, nonce, signature);
        vm.expectRevert(ERC3009.ERC3009InvalidSignature.selector);
        token.transferWithAuthorization(alice, address(channels), 500, 0, FOR_EVER, nonce, signature);
        vm.stopPrank();
        channels.openWithAuthorization(
            bob, address(token), 500, "n", address(0), alice, 0, FOR_EVER, nonce, signature
        );
    }

    function test_attack17_frontRunTopUpAuthorization() public {
        bytes32 other = openChannel(10, "other");
        bytes32 nonce = keccak256(abi.encode(id, uint128(5), alice, SALT));
        bytes memory signature = deposit3009(ALICE_KEY, 5, nonce);
        bytes4 mismatch = PaymentChannels.NonceMismatch.selector;
        vm.expectRevert(mismatch);
        channels.topUpWithAuthorization(other, 5, alice, SALT, 0, FOR_EVER, nonce, signature);
        vm.expectRevert(mismatch);
        channels.topUpWithAuthorization(id, 4, alice, SALT, 0, FOR_EVER, nonce, signature);
        vm.expectRevert(mismatch);
        channels.topUpWithAuthorization(id, 5, carol, SALT, 0, FOR_EVER, nonce, signature);
        channels.topUpWithAuthorization(id, 5, alice, SALT, 0, FOR_EVER, nonce, signature);
        vm.expectRevert(abi.encodeWithSelector(ERC3009.ERC3009UsedAuthorization.selector, alice, nonce));
        channels.topUpWithAuthorization(id, 5, alice, SALT, 0, FOR_EVER, nonce, signature);
    }

    // --- 32: numbers that do not fit --------------------------------------------------------------

    function test_attack32_depositOverflow() public {
        TestToken strange = new PlainToken();
        use(strange);
        strange.mint(alice, type(uint256).max - 10_000);
        bytes32 full = openChannel(type(uint128).max, SALT);
        vm.expectRevert(PaymentChannels.DepositOverflow.selector);
        vm.prank(alice);
        channels.topUp(full, 1);
        vm.prank(bob);
        channels.settle(full, type(uint128).max, voucher(ALICE_KEY, full, type(uint128).max));
        vm.assertEq(token.balanceOf(bob), type(uint128).max);
    }

    /// The sum of a batch may pass 128 bits.
    function test_attack32_batchSum() public {
        TestToken strange = new PlainToken();
        use(strange);
        strange.mint(alice, type(uint256).max - 10_000);
        PaymentChannels.Settlement[] memory rows = new PaymentChannels.Settlement[](3);
        for (uint256 i = 0; i < 3; ++i) {
            bytes32 full = openChannel(type(uint128).max, bytes32(i));
            bytes memory all = voucher(ALICE_KEY, full, type(uint128).max);
            rows[i] = PaymentChannels.Settlement(full, type(uint128).max, all);
        }
        vm.prank(bob);
        vm.assertEq(channels.settleBatch(rows), 3 * uint256(type(uint128).max));
    }

    // --- 36: widths -------------------------------------------------------------------------------

    /// Amounts that were signed wider than 128 bits are not cut to something that pays.
    function test_attack36_widthOfTheAmount() public {
        bytes32 typeHash = keccak256("Voucher(bytes32 channelId,uint256 cumulativeAmount)");
        bytes memory wide = pack(ALICE_KEY, typed(channelsDomain(), abi.encode(typeHash, id, uint256(100))));
        settleRefused(id, 100, wide, Vouchers.InvalidSignature.selector);
        bytes memory call = abi.encodeWithSelector(
            channels.settle.selector, id, (uint256(1) << 128) + 100, uint256(96), uint256(0)
        );
        vm.prank(bob);
        (bool isDone,) = address(channels).call(call);
        vm.assertFalse(isDone);
    }
}

/// @notice An honest token whose supply has no bound but its width.
contract PlainToken is TestToken {}
