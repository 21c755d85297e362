// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

import {IERC20} from "@openzeppelin/contracts/token/ERC20/IERC20.sol";

import {PaymentChannels} from "../src/PaymentChannels.sol";
import {Vouchers} from "../src/Vouchers.sol";
import {Base} from "./support/Base.sol";
import {Wallet} from "./support/Wallets.sol";

/// @notice What each function does where it may; where it may not is in ChannelsTable and ChannelsAttacks.
contract ChannelsTest is Base {
    bytes32 private constant SALT = keccak256("salt");
    uint128 private constant DEPOSIT = 1000;

    function setUp() public {
        deployAll();
        fund(alice, 1_000_000);
        fund(carol, 1_000_000);
    }

    function balances(uint256 ofAlice, uint256 ofBob, uint256 held) private view {
        vm.assertEq(token.balanceOf(alice), ofAlice, "payer");
        vm.assertEq(token.balanceOf(bob), ofBob, "payee");
        vm.assertEq(token.balanceOf(address(channels)), held, "held");
    }

    function test_deployment() public {
        vm.assertEq(address(channels.token()), address(token));
        vm.assertEq(channels.CLOSE_GRACE_PERIOD(), GRACE);
        vm.assertEq(channels.MINIMUM_CLOSE_GRACE_PERIOD(), 15 minutes);
        vm.assertEq(channels.domainSeparator(), channelsDomain());
        new PaymentChannels(token, 15 minutes);
        vm.expectRevert(
            abi.encodeWithSelector(PaymentChannels.GracePeriodTooShort.selector, 15 minutes - 1, 15 minutes)
        );
        new PaymentChannels(token, 15 minutes - 1);
    }

    function testFuzz_idAndDigest_asInTheDraft(
        address payer,
        address payee,
        address token_,
        bytes32 salt,
        address signer,
        uint128 amount
    ) public view {
        bytes32 id = channels.computeChannelId(payer, payee, token_, salt, signer);
        bytes32 expected =
            keccak256(abi.encode(payer, payee, token_, salt, signer, address(channels), block.chainid));
        vm.assertEq(id, expected);
        vm.assertEq(channels.voucherDigest(id, amount), voucherDigest(channelsDomain(), id, amount));
    }

    function test_open() public {
        bytes32 expected = idOf(alice, bob, SALT, carol);
        vm.expectEmit(address(channels));
        emit PaymentChannels.ChannelOpened(expected, alice, bob, address(token), carol, SALT, DEPOSIT);
        vm.prank(alice);
        bytes32 id = channels.open(bob, address(token), DEPOSIT, SALT, carol);
        vm.assertEq(id, expected);
        PaymentChannels.Channel memory channel = channels.getChannel(id);
        vm.assertEq(channel.payer, alice);
        vm.assertEq(channel.payee, bob);
        vm.assertEq(channel.token, address(token));
        vm.assertEq(channel.authorizedSigner, carol);
        vm.assertEq(channel.deposit, DEPOSIT);
        vm.assertEq(channel.settled, 0);
        vm.assertEq(channel.closeRequestedAt, 0);
        vm.assertFalse(channel.finalized);
        balances(999_000, 0, 1000);
    }

    function test_getChannel_unknown_isZero() public view {
        PaymentChannels.Channel memory none;
        bytes memory got = abi.encode(channels.getChannel(keccak256("nothing")));
        vm.assertEq(got, abi.encode(none));
    }

    function test_open_withoutDeposit_reverts() public {
        vm.expectRevert(PaymentChannels.ZeroDeposit.selector);
        openChannel(0, SALT);
    }

    function test_open_anotherToken_reverts() public {
        vm.expectRevert(
            abi.encodeWithSelector(PaymentChannels.TokenNotAccepted.selector, carol, address(token))
        );
        vm.prank(alice);
        channels.open(bob, carol, DEPOSIT, SALT, address(0));
    }

    function test_open_beyondBalance_reverts() public {
        vm.expectRevert();
        openChannel(1_000_001, SALT);
        vm.assertEq(channels.getChannel(idOf(alice, bob, SALT, address(0))).payer, address(0));
    }

    function test_openWithAuthorization_byAnybody() public {
        bytes32 nonce = keccak256(abi.encode(alice, bob, address(token), SALT, address(0)));
        bytes memory signature = deposit3009(ALICE_KEY, DEPOSIT, nonce);
        vm.prank(carol);
        bytes32 id = channels.openWithAuthorization(
            bob, address(token), DEPOSIT, SALT, address(0), alice, 0, FOR_EVER, nonce, signature
        );
        vm.assertEq(id, idOf(alice, bob, SALT, address(0)));
        vm.assertEq(channels.getChannel(id).payer, alice);
        balances(999_000, 0, 1000);
    }

    function test_topUp() public {
        bytes32 id = openChannel(DEPOSIT, SALT);
        vm.expectEmit(address(channels));
        emit PaymentChannels.ChannelToppedUp(id, alice, bob, alice, 500, 1500);
        vm.prank(alice);
        channels.topUp(id, 500);
        vm.assertEq(channels.getChannel(id).deposit, 1500);
        balances(998_500, 0, 1500);
    }

    function test_topUp_takesTheCloseRequestBack() public {
        bytes32 id = openChannel(DEPOSIT, SALT);
        vm.startPrank(alice);
        channels.requestClose(id);
        vm.expectEmit(address(channels));
        emit PaymentChannels.CloseRequestCancelled(id, alice, bob);
        channels.topUp(id, 1);
        vm.assertEq(channels.getChannel(id).closeRequestedAt, 0);
        vm.warp(START + GRACE);
        vm.expectRevert(PaymentChannels.CloseNotReady.selector);
        channels.withdraw(id);
        vm.stopPrank();
    }

    function test_topUp_nothing_reverts() public {
        bytes32 id = openChannel(DEPOSIT, SALT);
        vm.expectRevert(PaymentChannels.ZeroDeposit.selector);
        vm.prank(alice);
        channels.topUp(id, 0);
    }

    function topUpSigned(bytes32 id, uint256 key, uint128 amount) private {
        address from = vm.addr(key);
        bytes32 nonce = keccak256(abi.encode(id, amount, from, SALT));
        bytes memory signature = deposit3009(key, amount, nonce);
        vm.prank(bob);
        channels.topUpWithAuthorization(id, amount, from, SALT, 0, FOR_EVER, nonce, signature);
    }

    function test_topUpWithAuthorization_ofThePayer_takesTheCloseRequestBack() public {
        bytes32 id = openChannel(DEPOSIT, SALT);
        vm.prank(alice);
        channels.requestClose(id);
        topUpSigned(id, ALICE_KEY, 7);
        vm.assertEq(channels.getChannel(id).deposit, 1007);
        vm.assertEq(channels.getChannel(id).closeRequestedAt, 0);
        balances(998_993, 0, 1007);
    }

    /// Whoever gives, the refund is the payer's; and nobody else can keep the payer from leaving.
    function test_topUpWithAuthorization_ofOthers_isAGift() public {
        bytes32 id = openChannel(DEPOSIT, SALT);
        vm.prank(alice);
        channels.requestClose(id);
        topUpSigned(id, CAROL_KEY, 7);
        vm.assertEq(channels.getChannel(id).closeRequestedAt, uint64(START));
        vm.warp(START + GRACE);
        vm.prank(alice);
        channels.withdraw(id);
        balances(1_000_007, 0, 0);
    }

    function test_settle_paysWhatIsNew() public {
        bytes32 id = openChannel(DEPOSIT, SALT);
        vm.startPrank(bob);
        channels.settle(id, 100, voucher(ALICE_KEY, id, 100));
        bytes memory more = voucher(ALICE_KEY, id, 250);
        vm.expectEmit(address(channels));
        emit PaymentChannels.ChannelSettled(id, alice, bob, 150, 250);
        channels.settle(id, 250, more);
        vm.stopPrank();
        vm.assertEq(channels.getChannel(id).settled, 250);
        balances(999_000, 250, 750);
    }

    function test_settle_authorizedSigner_insteadOfThePayer() public {
        vm.prank(alice);
        bytes32 id = channels.open(bob, address(token), DEPOSIT, SALT, carol);
        bytes memory ofPayer = voucher(ALICE_KEY, id, 10);
        vm.startPrank(bob);
        vm.expectRevert(Vouchers.InvalidSignature.selector);
        channels.settle(id, 10, ofPayer);
        channels.settle(id, 10, voucher(CAROL_KEY, id, 10));
        vm.stopPrank();
        balances(999_000, 10, 990);
    }

    function test_settle_contractWallet() public {
        Wallet wallet = new Wallet(carol);
        vm.prank(alice);
        bytes32 id = channels.open(bob, address(token), DEPOSIT, SALT, address(wallet));
        vm.prank(bob);
        channels.settle(id, 10, voucher(CAROL_KEY, id, 10));
        balances(999_000, 10, 990);
    }

    function test_settle_inAndAfterTheGracePeriod() public {
        bytes32 id = openChannel(DEPOSIT, SALT);
        vm.prank(alice);
        channels.requestClose(id);
        vm.prank(bob);
        channels.settle(id, 10, voucher(ALICE_KEY, id, 10));
        vm.assertEq(channels.getChannel(id).closeRequestedAt, uint64(START));
        vm.warp(START + 2 * GRACE);
        vm.prank(bob);
        channels.settle(id, 20, voucher(ALICE_KEY, id, 20));
        balances(999_000, 20, 980);
    }

    function test_settleWithAuthorization_byAnybody_paysThePayee() public {
        bytes32 id = openChannel(DEPOSIT, SALT);
        bytes memory ofPayee = payeeAuthorization(BOB_KEY, "Settle", id, 60, 9, START);
        vm.prank(carol);
        channels.settleWithAuthorization(id, 60, 9, START, ofPayee, voucher(ALICE_KEY, id, 60));
        vm.assertTrue(channels.payeeNonceUsed(id, 9));
        vm.assertEq(token.balanceOf(carol), 1_000_000);
        balances(999_000, 60, 940);
    }

    function test_close_paysAndRefunds() public {
        bytes32 id = openChannel(DEPOSIT, SALT);
        bytes memory last = voucher(ALICE_KEY, id, 300);
        vm.expectEmit(address(channels));
        emit PaymentChannels.ChannelSettled(id, alice, bob, 300, 300);
        vm.expectEmit(address(channels));
        emit PaymentChannels.ChannelClosed(id, alice, bob, 300, 700);
        vm.prank(bob);
        channels.close(id, 300, last);
        vm.assertTrue(channels.getChannel(id).finalized);
        balances(999_700, 300, 0);
    }

    function test_close_all() public {
        bytes32 id = openChannel(DEPOSIT, SALT);
        vm.prank(bob);
        channels.close(id, DEPOSIT, voucher(ALICE_KEY, id, DEPOSIT));
        balances(999_000, 1000, 0);
    }

    /// The payee wants no more: no voucher needed, what it had stays its own.
    function test_close_forfeit_needsNoVoucher() public {
        bytes32 id = openChannel(DEPOSIT, SALT);
        vm.startPrank(bob);
        channels.settle(id, 40, voucher(ALICE_KEY, id, 40));
        channels.close(id, 30, "");
        vm.stopPrank();
        vm.assertEq(channels.getChannel(id).settled, 40);
        balances(999_960, 40, 0);
    }

    function test_closeWithAuthorization_byAnybody() public {
        bytes32 id = openChannel(DEPOSIT, SALT);
        bytes memory ofPayee = payeeAuthorization(BOB_KEY, "Close", id, 60, 9, START);
        vm.prank(carol);
        channels.closeWithAuthorization(id, 60, 9, START, ofPayee, voucher(ALICE_KEY, id, 60));
        vm.assertTrue(channels.payeeNonceUsed(id, 9));
        balances(999_940, 60, 0);
    }

    function test_closeWithAuthorization_forfeit() public {
        bytes32 id = openChannel(DEPOSIT, SALT);
        bytes memory ofPayee = payeeAuthorization(BOB_KEY, "Close", id, 0, 9, START);
        vm.prank(carol);
        channels.closeWithAuthorization(id, 0, 9, START, ofPayee, "");
        balances(1_000_000, 0, 0);
    }

    function test_requestClose_andWithdraw() public {
        bytes32 id = openChannel(DEPOSIT, SALT);
        vm.prank(bob);
        channels.settle(id, 10, voucher(ALICE_KEY, id, 10));
        vm.expectEmit(address(channels));
        emit PaymentChannels.CloseRequested(id, alice, bob, START + GRACE);
        vm.startPrank(alice);
        channels.requestClose(id);
        vm.warp(START + GRACE - 1);
        vm.expectRevert(PaymentChannels.CloseNotReady.selector);
        channels.withdraw(id);
        vm.warp(START + GRACE);
        vm.expectEmit(address(channels));
        emit PaymentChannels.ChannelClosed(id, alice, bob, 10, 990);
        channels.withdraw(id);
        vm.stopPrank();
        balances(999_990, 10, 0);
    }

    /// Asking again neither shortens nor prolongs the grace period, and tells nobody anything.
    function test_requestClose_again_changesNothing() public {
        bytes32 id = openChannel(DEPOSIT, SALT);
        vm.startPrank(alice);
        channels.requestClose(id);
        vm.warp(START + 100);
        vm.recordLogs();
        channels.requestClose(id);
        vm.assertEq(vm.getRecordedLogs().length, 0);
        vm.assertEq(channels.getChannel(id).closeRequestedAt, uint64(START));
        vm.stopPrank();
    }

    // --- Batches ----------------------------------------------------------------------------------

    function test_settleBatch_skipsBadRows() public {
        bytes32 a = openChannel(DEPOSIT, SALT);
        bytes32 b = openChannel(DEPOSIT, "b");
        bytes32 closed = openChannel(DEPOSIT, "closed");
        vm.prank(bob);
        channels.close(closed, 0, "");
        vm.prank(alice);
        bytes32 others = channels.open(carol, address(token), DEPOSIT, SALT, address(0));
        address wallet = address(new Wallet(carol));
        vm.prank(alice);
        bytes32 ofWallet = channels.open(bob, address(token), DEPOSIT, SALT, wallet);

        PaymentChannels.Settlement[] memory rows = new PaymentChannels.Settlement[](9);
        rows[0] = PaymentChannels.Settlement(a, 10, voucher(ALICE_KEY, a, 10));
        rows[1] = PaymentChannels.Settlement(keccak256("nothing"), 10, "");
        rows[2] = PaymentChannels.Settlement(closed, 10, voucher(ALICE_KEY, closed, 10));
        rows[3] = PaymentChannels.Settlement(others, 10, voucher(ALICE_KEY, others, 10));
        rows[4] = PaymentChannels.Settlement(a, 10, voucher(ALICE_KEY, a, 10));
        rows[5] = PaymentChannels.Settlement(a, 1001, voucher(ALICE_KEY, a, 1001));
        rows[6] = PaymentChannels.Settlement(a, 11, voucher(CAROL_KEY, a, 11));
        rows[7] = PaymentChannels.Settlement(ofWallet, 10, voucher(CAROL_KEY, ofWallet, 10));
        rows[8] = PaymentChannels.Settlement(b, 20, voucher(ALICE_KEY, b, 20));
        bytes4[7] memory reasons = [
            PaymentChannels.ChannelNotFound.selector,
            PaymentChannels.ChannelFinalized.selector,
            PaymentChannels.NotPayee.selector,
            PaymentChannels.AmountNotIncreasing.selector,
            PaymentChannels.AmountExceedsDeposit.selector,
            Vouchers.InvalidSignature.selector,
            Vouchers.InvalidSignature.selector
        ];
        for (uint256 i = 0; i < 7; ++i) {
            PaymentChannels.Settlement memory row = rows[i + 1];
            vm.expectEmit(address(channels));
            emit PaymentChannels.SettlementSkipped(row.channelId, bob, row.cumulativeAmount, reasons[i]);
        }
        vm.prank(bob);
        vm.assertEq(channels.settleBatch(rows), 30);
        vm.assertEq(token.balanceOf(bob), 30);
        vm.assertEq(channels.getChannel(a).settled, 10);
        vm.assertEq(channels.getChannel(b).settled, 20);
        vm.assertEq(channels.getChannel(others).settled, 0);
        vm.assertEq(channels.getChannel(ofWallet).settled, 0);

        // Singly, the wallet is asked.
        vm.prank(bob);
        channels.settle(ofWallet, 10, voucher(CAROL_KEY, ofWallet, 10));
    }

    function test_settleBatch_empty() public {
        vm.prank(bob);
        vm.assertEq(channels.settleBatch(new PaymentChannels.Settlement[](0)), 0);
    }

    function test_settleBatch_raisingOneChannelTwice() public {
        bytes32 id = openChannel(DEPOSIT, SALT);
        PaymentChannels.Settlement[] memory rows = new PaymentChannels.Settlement[](2);
        rows[0] = PaymentChannels.Settlement(id, 10, voucher(ALICE_KEY, id, 10));
        rows[1] = PaymentChannels.Settlement(id, 15, voucher(ALICE_KEY, id, 15));
        vm.prank(bob);
        vm.assertEq(channels.settleBatch(rows), 15);
        balances(999_000, 15, 985);
    }

    // --- Amounts ----------------------------------------------------------------------------------

    function testFuzz_everyWeiIsAccounted(
        uint128 deposit,
        uint128 extra,
        uint128 first,
        uint128 last
    ) public {
        deposit = uint128(bound(deposit, 1, SUPPLY / 4));
        extra = uint128(bound(extra, 1, SUPPLY / 4));
        first = uint128(bound(first, 1, deposit));
        last = uint128(bound(last, 0, uint256(deposit) + extra));
        token.transfer(alice, uint256(deposit) + extra);
        bytes32 id = openChannel(deposit, SALT);
        vm.prank(bob);
        channels.settle(id, first, voucher(ALICE_KEY, id, first));
        vm.prank(alice);
        channels.topUp(id, extra);
        vm.prank(bob);
        channels.close(id, last, voucher(ALICE_KEY, id, last));
        uint256 paid = last > first ? last : first;
        balances(1_000_000 + uint256(deposit) + extra - paid, paid, 0);
    }

    function test_payerMayBePayee() public {
        vm.startPrank(alice);
        bytes32 id = channels.open(alice, address(token), DEPOSIT, SALT, address(0));
        channels.close(id, 10, voucher(ALICE_KEY, id, 10));
        vm.stopPrank();
        vm.assertEq(token.balanceOf(alice), 1_000_000);
    }

    /// A channel to nobody is nobody's: the payer gets out as from any other.
    function test_payeeZero_payerGetsOut() public {
        vm.startPrank(alice);
        bytes32 id = channels.open(address(0), address(token), DEPOSIT, SALT, address(0));
        channels.requestClose(id);
        vm.warp(START + GRACE);
        channels.withdraw(id);
        vm.stopPrank();
        balances(1_000_000, 0, 0);
    }
}
