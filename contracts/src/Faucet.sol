// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

import {IERC20} from "@openzeppelin/contracts/token/ERC20/IERC20.sol";
import {SafeERC20} from "@openzeppelin/contracts/token/ERC20/utils/SafeERC20.sol";

/// @title Gives tokens away, so that a development ledger can be tried out.
/// @notice Gives what it holds, a fixed amount per address and period. Anybody can make addresses: it is
/// for ledgers whose tokens are worth nothing.
contract Faucet {
    using SafeERC20 for IERC20;

    /// @notice What is given away.
    IERC20 public immutable token;
    /// @notice Wei given each time.
    uint256 public immutable amount;
    /// @notice Seconds an address has to wait between two times.
    uint256 public immutable period;

    /// @notice Unix seconds from when the address can be given again; 0 for one that was given nothing yet.
    mapping(address to => uint256) public nextDripAt;

    /// @notice `to` was given `amount` wei.
    event Dripped(address indexed to, uint256 amount);

    /// @notice The address was given lately: again at `nextAt` (Unix seconds).
    error TooSoon(uint256 nextAt);

    /// @param token_ What is given away; somebody has to send some here.
    /// @param amount_ Wei each time.
    /// @param period_ Seconds between two times.
    constructor(IERC20 token_, uint256 amount_, uint256 period_) {
        token = token_;
        amount = amount_;
        period = period_;
    }

    /// @notice Gives `to` its amount. Anybody may ask for anybody: a new wallet has no coin for gas.
    /// @param to Who gets it.
    function drip(address to) external {
        uint256 next = nextDripAt[to];
        require(block.timestamp >= next, TooSoon(next));
        nextDripAt[to] = block.timestamp + period;
        emit Dripped(to, amount);
        token.safeTransfer(to, amount);
    }
}
