// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

import {SafeERC20} from "@openzeppelin/contracts/token/ERC20/utils/SafeERC20.sol";
import {ReentrancyGuardTransient} from "@openzeppelin/contracts/utils/ReentrancyGuardTransient.sol";
import {IERC20Errors} from "@openzeppelin/contracts/interfaces/draft-IERC6093.sol";
import {IERC20} from "@openzeppelin/contracts/token/ERC20/IERC20.sol";

import {Bounds} from "../src/Bounds.sol";
import {ProviderRegistry} from "../src/ProviderRegistry.sol";
import {Stakes} from "../src/Stakes.sol";
import {TNZO} from "../src/TNZO.sol";
import {Base} from "./support/Base.sol";
import {EmptyToken, FalseToken, FeeToken, ReentrantToken, TestToken} from "./support/Tokens.sol";

contract StakesTest is Base {
    function setUp() public {
        deployAll();
        fund(alice, 10_000);
        fund(bob, 10_000);
    }

    /// Wei staked, of it unbonding, and from when it can be taken out.
    function expect(address who, uint256 staked, uint256 unbonding, uint256 until) private view {
        ProviderRegistry.ProviderView memory seen = registry.provider(who);
        vm.assertEq(seen.staked, staked, "staked");
        vm.assertEq(seen.unbonding, unbonding, "unbonding");
        vm.assertEq(seen.unbondingUntil, until, "until");
    }

    function stake(address who, uint256 amount) private {
        vm.prank(who);
        registry.stake(amount);
    }

    function unstake(uint256 amount) private {
        vm.prank(alice);
        registry.requestUnstake(amount);
    }

    function slash(uint256 amount) private {
        vm.prank(ARBITER);
        registry.slash(alice, amount, "why");
    }

    function test_stake() public {
        stake(alice, 60);
        vm.expectEmit(address(registry));
        emit Stakes.Staked(alice, 40, 100);
        stake(alice, 40);
        expect(alice, 100, 0, 0);
        vm.assertEq(token.balanceOf(address(registry)), 100);
    }

    function test_stake_nothing_reverts() public {
        vm.expectRevert(Stakes.ZeroAmount.selector);
        stake(alice, 0);
    }

    function test_stake_withoutAllowance_reverts() public {
        vm.expectRevert(
            abi.encodeWithSelector(IERC20Errors.ERC20InsufficientAllowance.selector, registry, 0, 5)
        );
        stake(carol, 5);
    }

    function test_stakeWithPermit() public {
        token.transfer(carol, 70);
        bytes32 digest = permitDigest(carol, address(registry), 70, 0, START);
        (uint8 v, bytes32 r, bytes32 s) = vm.sign(CAROL_KEY, digest);
        vm.prank(carol);
        registry.stakeWithPermit(70, START, v, r, s);
        expect(carol, 70, 0, 0);
        vm.assertEq(token.allowance(carol, address(registry)), 0);
    }

    /// Somebody saw the permit and used it first: the stake goes through all the same.
    function test_attack17_permitUsedBySomebodyElse() public {
        token.transfer(carol, 70);
        bytes32 digest = permitDigest(carol, address(registry), 70, 0, START);
        (uint8 v, bytes32 r, bytes32 s) = vm.sign(CAROL_KEY, digest);
        token.permit(carol, address(registry), 70, START, v, r, s);
        vm.prank(carol);
        registry.stakeWithPermit(70, START, v, r, s);
        expect(carol, 70, 0, 0);
    }

    /// A permit stakes for who signed it, and nobody else.
    function test_stakeWithPermit_ofAnother_reverts() public {
        bytes32 digest = permitDigest(alice, address(registry), 70, 0, START);
        (uint8 v, bytes32 r, bytes32 s) = vm.sign(ALICE_KEY, digest);
        vm.expectRevert(
            abi.encodeWithSelector(IERC20Errors.ERC20InsufficientAllowance.selector, registry, 0, 70)
        );
        vm.prank(carol);
        registry.stakeWithPermit(70, START, v, r, s);
    }

    function test_requestUnstake() public {
        stake(alice, 100);
        vm.expectEmit(address(registry));
        emit Stakes.UnstakeRequested(alice, 30, 30, uint64(START) + UNBONDING);
        unstake(30);
        expect(alice, 100, 30, START + UNBONDING);
    }

    /// The period begins anew for all, so that what was asked for last waits a whole one.
    function test_requestUnstake_more_beginsAnew() public {
        stake(alice, 100);
        unstake(30);
        vm.warp(START + 6 days);
        vm.expectEmit(address(registry));
        emit Stakes.UnstakeRequested(alice, 20, 50, uint64(START + 6 days) + UNBONDING);
        unstake(20);
        vm.warp(START + UNBONDING);
        vm.expectRevert(
            abi.encodeWithSelector(Stakes.StillUnbonding.selector, uint64(START + 6 days) + UNBONDING)
        );
        vm.prank(alice);
        registry.withdrawStake();
    }

    function test_requestUnstake_nothing_reverts() public {
        stake(alice, 100);
        vm.expectRevert(Stakes.ZeroAmount.selector);
        unstake(0);
    }

    function test_requestUnstake_moreThanBonded_reverts() public {
        stake(alice, 100);
        unstake(30);
        vm.expectRevert(abi.encodeWithSelector(Stakes.InsufficientBonded.selector, 71, 70));
        unstake(71);
    }

    function test_cancelUnstake() public {
        stake(alice, 100);
        unstake(30);
        unstake(20);
        vm.expectEmit(address(registry));
        emit Stakes.UnstakeCancelled(alice, 50);
        vm.prank(alice);
        registry.cancelUnstake();
        expect(alice, 100, 0, 0);
    }

    function test_withdrawStake() public {
        stake(alice, 100);
        unstake(30);
        vm.warp(START + UNBONDING);
        vm.expectEmit(address(registry));
        emit Stakes.StakeWithdrawn(alice, 30, 70);
        vm.prank(alice);
        registry.withdrawStake();
        expect(alice, 70, 0, 0);
        vm.assertEq(token.balanceOf(alice), 9930);
    }

    function test_slash() public {
        stake(alice, 100);
        vm.expectEmit(address(registry));
        emit Stakes.Slashed(alice, 40, 60, 0, "why");
        slash(40);
        expect(alice, 60, 0, 0);
        vm.assertEq(token.balanceOf(TREASURY), 40);
    }

    function test_slash_bondedPartFirst() public {
        stake(alice, 100);
        unstake(50);
        vm.expectEmit(address(registry));
        emit Stakes.Slashed(alice, 30, 70, 50, "why");
        slash(30);
        expect(alice, 70, 50, START + UNBONDING);
        // Then the unbonding part.
        vm.expectEmit(address(registry));
        emit Stakes.Slashed(alice, 30, 40, 40, "why");
        slash(30);
        expect(alice, 40, 40, START + UNBONDING);
    }

    function test_slash_all_endsUnbonding() public {
        stake(alice, 100);
        unstake(50);
        vm.expectEmit(address(registry));
        emit Stakes.Slashed(alice, 100, 0, 0, "why");
        slash(100);
        expect(alice, 0, 0, 0);
        vm.expectRevert(abi.encodeWithSelector(Stakes.NothingUnbonding.selector, alice));
        vm.prank(alice);
        registry.withdrawStake();
    }

    function test_slash_moreThanTheStake_reverts() public {
        stake(alice, 100);
        stake(bob, 100);
        vm.expectRevert(abi.encodeWithSelector(Stakes.SlashExceedsStake.selector, 101, 100));
        slash(101);
    }

    function test_slash_nothing_reverts() public {
        stake(alice, 100);
        vm.expectRevert(Stakes.ZeroAmount.selector);
        slash(0);
    }

    function test_slash_byOthers_reverts() public {
        stake(alice, 100);
        address[4] memory others = [alice, bob, TREASURY, address(this)];
        for (uint256 i = 0; i < others.length; ++i) {
            vm.expectRevert(abi.encodeWithSelector(Stakes.NotArbiter.selector, others[i]));
            vm.prank(others[i]);
            registry.slash(alice, 1, "");
        }
    }

    function test_slash_evidenceIsBounded() public {
        stake(alice, 100);
        string memory tooLong = string(new bytes(1025));
        vm.expectRevert(abi.encodeWithSelector(Bounds.InvalidLength.selector, "evidence", 1025, 0, 1024));
        vm.prank(ARBITER);
        registry.slash(alice, 1, tooLong);
    }

    /// Nothing staked, bonded only, unbonding, or to be had: what may be done in each.
    function test_everyFunctionInEveryState() public {
        bytes4[4] memory cancel =
            [Stakes.NothingUnbonding.selector, Stakes.NothingUnbonding.selector, bytes4(0), bytes4(0)];
        bytes4[4] memory withdraw = [
            Stakes.NothingUnbonding.selector,
            Stakes.NothingUnbonding.selector,
            Stakes.StillUnbonding.selector,
            bytes4(0)
        ];
        bytes4[4] memory request = [Stakes.InsufficientBonded.selector, bytes4(0), bytes4(0), bytes4(0)];
        bytes4[4] memory slashed = [Stakes.SlashExceedsStake.selector, bytes4(0), bytes4(0), bytes4(0)];
        for (uint256 state = 0; state < 4; ++state) {
            check(state, alice, abi.encodeCall(registry.cancelUnstake, ()), cancel[state]);
            check(state, alice, abi.encodeCall(registry.withdrawStake, ()), withdraw[state]);
            check(state, alice, abi.encodeCall(registry.requestUnstake, (10)), request[state]);
            check(state, ARBITER, abi.encodeCall(registry.slash, (alice, 10, "")), slashed[state]);
            check(state, alice, abi.encodeCall(registry.stake, (10)), 0);
            // Others act on their own stake only, of which there is none.
            check(state, bob, abi.encodeCall(registry.cancelUnstake, ()), cancel[0]);
            check(state, bob, abi.encodeCall(registry.withdrawStake, ()), withdraw[0]);
            check(state, bob, abi.encodeCall(registry.requestUnstake, (10)), request[0]);
        }
    }

    function check(uint256 state, address caller, bytes memory call, bytes4 expected) private {
        uint256 before = vm.snapshotState();
        if (state >= 1) stake(alice, 100);
        if (state >= 2) unstake(50);
        if (state == 3) vm.warp(START + UNBONDING);
        vm.prank(caller);
        (bool isDone, bytes memory result) = address(registry).call(call);
        vm.assertEq(isDone, expected == 0);
        if (!isDone) vm.assertEq(bytes32(bytes4(result)), bytes32(expected));
        vm.revertToState(before);
    }

    function testFuzz_slash_takesExactly(uint256 staked, uint256 unbonding, uint256 amount) public {
        staked = bound(staked, 1, 10_000);
        unbonding = bound(unbonding, 0, staked);
        amount = bound(amount, 1, staked);
        stake(alice, staked);
        stake(bob, 500);
        if (unbonding != 0) unstake(unbonding);
        slash(amount);
        uint256 left = staked - amount;
        uint256 leftUnbonding = unbonding < left ? unbonding : left;
        expect(alice, left, leftUnbonding, leftUnbonding == 0 ? 0 : START + UNBONDING);
        vm.assertEq(token.balanceOf(TREASURY), amount);
        vm.assertEq(token.balanceOf(address(registry)), left + 500);
    }

    function test_deployment_zeroAddresses_revert() public {
        vm.expectRevert(Stakes.ZeroAddress.selector);
        new ProviderRegistry(IERC20(address(0)), ARBITER, TREASURY, 1, 1, 1);
        vm.expectRevert(Stakes.ZeroAddress.selector);
        new ProviderRegistry(token, address(0), TREASURY, 1, 1, 1);
        vm.expectRevert(Stakes.ZeroAddress.selector);
        new ProviderRegistry(token, ARBITER, address(0), 1, 1, 1);
    }

    // --- 10: tokens that are not what they seem ---------------------------------------------------

    function use(TestToken strange) private {
        token = TNZO(address(strange));
        registry = deployRegistry(address(strange));
        strange.mint(alice, 10_000);
        strange.mint(bob, 10_000);
        vm.prank(alice);
        strange.approve(address(registry), type(uint256).max);
        vm.prank(bob);
        strange.approve(address(registry), type(uint256).max);
    }

    /// What came counts, so that nobody's stake pays for another's fee.
    function test_attack10_feeOnTransfer_stake() public {
        use(new FeeToken());
        stake(alice, 1000);
        stake(bob, 1000);
        expect(alice, 990, 0, 0);
        vm.assertEq(token.balanceOf(address(registry)), 1980);
    }

    function test_attack10_movesNothing_stake() public {
        use(new EmptyToken());
        vm.expectRevert(Stakes.ZeroAmount.selector);
        stake(alice, 1000);
    }

    function test_attack10_returnsFalse_stake() public {
        FalseToken strange = new FalseToken();
        use(strange);
        stake(alice, 1000);
        unstake(500);
        vm.warp(START + UNBONDING);
        strange.refuse(true);
        bytes memory failed =
            abi.encodeWithSelector(SafeERC20.SafeERC20FailedOperation.selector, address(strange));
        vm.expectRevert(failed);
        stake(bob, 1000);
        vm.expectRevert(failed);
        slash(10);
        vm.expectRevert(failed);
        vm.prank(alice);
        registry.withdrawStake();
        expect(alice, 1000, 500, START + UNBONDING);
    }

    function test_attack10_reentrancy_stake() public {
        ReentrantToken strange = new ReentrantToken();
        use(strange);
        stake(alice, 1000);
        unstake(500);
        vm.warp(START + UNBONDING);
        bytes[4] memory inner = [
            abi.encodeCall(registry.stake, (1)),
            abi.encodeCall(registry.stakeWithPermit, (1, START, 27, 0, 0)),
            abi.encodeCall(registry.withdrawStake, ()),
            abi.encodeCall(registry.slash, (alice, 1, ""))
        ];
        for (uint256 i = 0; i < inner.length; ++i) {
            // In a multicall too: the guard is the contract's, not the call's.
            bytes[] memory wrapped = new bytes[](1);
            wrapped[0] = inner[i];
            bytes[2] memory forms = [inner[i], abi.encodeCall(registry.multicall, (wrapped))];
            for (uint256 k = 0; k < 6; ++k) {
                uint256 state = vm.snapshotState();
                strange.arm(address(registry), forms[k % 2]);
                if (k < 2) {
                    stake(bob, 100);
                } else if (k < 4) {
                    slash(100);
                } else {
                    vm.prank(alice);
                    registry.withdrawStake();
                }
                vm.assertTrue(strange.isCalled());
                vm.assertFalse(strange.isDone(), "reentered");
                vm.assertEq(
                    strange.result(),
                    abi.encodePacked(ReentrancyGuardTransient.ReentrancyGuardReentrantCall.selector)
                );
                uint256 sum = registry.provider(alice).staked + registry.provider(bob).staked;
                vm.assertEq(token.balanceOf(address(registry)), sum);
                vm.revertToState(state);
            }
        }
    }

    // --- 16: staking without having something at stake --------------------------------------------

    /// What is being taken out can be slashed to its last second.
    function test_attack16_slashedInTheLastSecond() public {
        stake(alice, 100);
        unstake(100);
        vm.warp(START + UNBONDING - 1);
        slash(100);
        vm.warp(START + UNBONDING);
        vm.expectRevert(abi.encodeWithSelector(Stakes.NothingUnbonding.selector, alice));
        vm.prank(alice);
        registry.withdrawStake();
    }

    /// Deregistering is no way out.
    function test_attack16_deregisteredIsSlashable() public {
        vm.startPrank(alice);
        registry.register(ProviderRegistry.Role.ModelProvider, "");
        registry.stake(100);
        registry.deregister();
        vm.stopPrank();
        expect(alice, 100, 0, 0);
        slash(100);
        expect(alice, 0, 0, 0);
    }

    /// Bonding again and asking again does not shorten the period.
    function test_attack16_cancelAndAskAgain() public {
        stake(alice, 100);
        unstake(100);
        vm.warp(START + UNBONDING - 1);
        vm.startPrank(alice);
        registry.cancelUnstake();
        registry.requestUnstake(100);
        vm.warp(START + UNBONDING);
        vm.expectRevert(
            abi.encodeWithSelector(Stakes.StillUnbonding.selector, uint64(START + 2 * uint256(UNBONDING) - 1))
        );
        registry.withdrawStake();
        vm.stopPrank();
    }

    function test_attack32_stakeOverflow() public {
        TestToken strange = new FalseToken();
        use(strange);
        strange.mint(alice, type(uint256).max - 20_000);
        stake(alice, type(uint256).max - 10_000);
        vm.expectRevert(
            abi.encodeWithSelector(
                Stakes.InsufficientBonded.selector, type(uint256).max, type(uint256).max - 10_000
            )
        );
        unstake(type(uint256).max);
        unstake(type(uint256).max - 10_000);
        expect(alice, type(uint256).max - 10_000, type(uint256).max - 10_000, START + UNBONDING);
    }
}
