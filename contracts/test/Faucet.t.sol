// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

import {Faucet} from "../src/Faucet.sol";
import {Base} from "./support/Base.sol";

contract FaucetTest is Base {
    event Dripped(address indexed to, uint256 amount);

    function setUp() public {
        deployAll();
        token.transfer(address(faucet), 50_000e18);
    }

    function test_drip_byAnybodyForAnybody() public {
        vm.assertEq(faucet.nextDripAt(alice), 0);
        vm.expectEmit(address(faucet));
        emit Dripped(alice, 20_000e18);
        vm.prank(bob);
        faucet.drip(alice);
        vm.assertEq(token.balanceOf(alice), 20_000e18);
        vm.assertEq(faucet.nextDripAt(alice), START + 1 days);
    }

    function test_drip_oncePerPeriodAndAddress() public {
        faucet.drip(alice);
        faucet.drip(bob);
        vm.warp(START + 1 days - 1);
        vm.expectRevert(abi.encodeWithSelector(Faucet.TooSoon.selector, START + 1 days));
        faucet.drip(alice);
        vm.warp(START + 1 days);
        token.transfer(address(faucet), 20_000e18);
        faucet.drip(alice);
        vm.assertEq(token.balanceOf(alice), 40_000e18);
    }

    /// A drip that fails does not use the day up.
    function test_drip_fromAnEmptyFaucet_reverts() public {
        faucet.drip(bob);
        faucet.drip(carol);
        vm.expectRevert();
        faucet.drip(alice);
        vm.assertEq(faucet.nextDripAt(alice), 0);
    }

    function test_parameters() public view {
        vm.assertEq(address(faucet.token()), address(token));
        vm.assertEq(faucet.amount(), 20_000e18);
        vm.assertEq(faucet.period(), 1 days);
    }
}
