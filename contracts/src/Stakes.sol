// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

import {IERC20} from "@openzeppelin/contracts/token/ERC20/IERC20.sol";
import {IERC20Permit} from "@openzeppelin/contracts/token/ERC20/extensions/IERC20Permit.sol";
import {SafeERC20} from "@openzeppelin/contracts/token/ERC20/utils/SafeERC20.sol";
import {ReentrancyGuardTransient} from "@openzeppelin/contracts/utils/ReentrancyGuardTransient.sol";

import {Bounds} from "./Bounds.sol";

/// @title The stakes of providers: put in, taken out after a waiting period, slashed by an arbiter.
/// @notice A stake has two parts. The bonded part counts for being listed; the unbonding part waits to be
/// taken out. Both can be slashed until they are gone.
/// @dev The contract holds exactly the sum of all stakes, and whatever somebody sends it without staking:
/// that is nobody's and stays.
abstract contract Stakes is ReentrancyGuardTransient {
    using SafeERC20 for IERC20;

    struct Stake {
        /// Wei, with the unbonding part.
        uint256 staked;
        /// Wei; never more than `staked`.
        uint256 unbonding;
        /// Unix seconds from when the unbonding part can be taken out; 0 while nothing unbonds.
        uint64 unbondingUntil;
    }

    uint256 private constant MAX_EVIDENCE = 1024;

    /// @notice What is staked.
    IERC20 public immutable token;
    /// @notice Who may slash: trusted to judge, and to do it before a stake is taken out.
    address public immutable arbiter;
    /// @notice Who gets what is slashed.
    address public immutable treasury;
    /// @notice Wei that have to be bonded for a provider's endpoints to be active.
    uint256 public immutable minimumStake;
    /// @notice Seconds between asking for a stake and taking it out.
    uint64 public immutable unbondingPeriod;

    mapping(address provider => Stake) internal _stakes;

    /// @notice `amount` wei came on top; now `total`.
    event Staked(address indexed provider, uint256 amount, uint256 total);
    /// @notice `amount` wei more are unbonding, now `unbonding` in all, to be had from `availableAt` (Unix
    /// seconds).
    event UnstakeRequested(address indexed provider, uint256 amount, uint256 unbonding, uint64 availableAt);
    /// @notice All that was unbonding, `amount` wei, is bonded again.
    event UnstakeCancelled(address indexed provider, uint256 amount);
    /// @notice All that was unbonding, `amount` wei, was taken out; `total` is left.
    event StakeWithdrawn(address indexed provider, uint256 amount, uint256 total);
    /// @notice The arbiter took `amount` wei; `total` is left, `unbonding` of it unbonding.
    event Slashed(
        address indexed provider, uint256 amount, uint256 total, uint256 unbonding, string evidence
    );

    /// @notice Nothing moves by nothing.
    error ZeroAmount();
    /// @notice The address of a role is missing.
    error ZeroAddress();
    /// @notice `asked` wei should unbond, but only `bonded` are bonded.
    error InsufficientBonded(uint256 asked, uint256 bonded);
    /// @notice Nothing is unbonding.
    error NothingUnbonding(address provider);
    /// @notice The waiting period ends at `until` (Unix seconds).
    error StillUnbonding(uint64 until);
    /// @notice Only the arbiter may slash.
    error NotArbiter(address caller);
    /// @notice `asked` wei should be slashed, but only `staked` are staked.
    error SlashExceedsStake(uint256 asked, uint256 staked);

    constructor(
        IERC20 token_,
        address arbiter_,
        address treasury_,
        uint256 minimumStake_,
        uint64 unbondingPeriod_
    ) {
        require(
            address(token_) != address(0) && arbiter_ != address(0) && treasury_ != address(0), ZeroAddress()
        );
        token = token_;
        arbiter = arbiter_;
        treasury = treasury_;
        minimumStake = minimumStake_;
        unbondingPeriod = unbondingPeriod_;
    }

    /// @notice Puts the caller's tokens into its stake. They must be allowed to this contract before.
    /// @param amount Wei.
    function stake(uint256 amount) external nonReentrant {
        _stake(amount);
    }

    /// @notice As `stake`, with the allowance signed (ERC-2612) instead of sent before.
    /// @param amount Wei, of the permit and of the stake.
    /// @param deadline Unix seconds until when the permit holds.
    function stakeWithPermit(
        uint256 amount,
        uint256 deadline,
        uint8 v,
        bytes32 r,
        bytes32 s
    ) external nonReentrant {
        // Somebody who saw the permit may have submitted it first: then the allowance is there already.
        try IERC20Permit(address(token)).permit(msg.sender, address(this), amount, deadline, v, r, s) {}
            catch {}
        _stake(amount);
    }

    /// @notice Lets a part of the caller's bonded stake unbond. The waiting period begins anew for all that
    /// is unbonding, so that nothing comes out earlier than a whole period after it was asked for last.
    /// @param amount Wei.
    function requestUnstake(uint256 amount) external {
        Stake storage own = _stakes[msg.sender];
        require(amount != 0, ZeroAmount());
        uint256 bonded = own.staked - own.unbonding;
        require(amount <= bonded, InsufficientBonded(amount, bonded));
        own.unbonding += amount;
        own.unbondingUntil = uint64(block.timestamp) + unbondingPeriod;
        emit UnstakeRequested(msg.sender, amount, own.unbonding, own.unbondingUntil);
    }

    /// @notice Bonds all again that is unbonding.
    function cancelUnstake() external {
        Stake storage own = _stakes[msg.sender];
        uint256 amount = own.unbonding;
        require(amount != 0, NothingUnbonding(msg.sender));
        own.unbonding = 0;
        own.unbondingUntil = 0;
        emit UnstakeCancelled(msg.sender, amount);
    }

    /// @notice Takes all out that is unbonding, after the waiting period.
    function withdrawStake() external nonReentrant {
        Stake storage own = _stakes[msg.sender];
        uint256 amount = own.unbonding;
        require(amount != 0, NothingUnbonding(msg.sender));
        require(block.timestamp >= own.unbondingUntil, StillUnbonding(own.unbondingUntil));
        own.staked -= amount;
        own.unbonding = 0;
        own.unbondingUntil = 0;
        emit StakeWithdrawn(msg.sender, amount, own.staked);
        token.safeTransfer(msg.sender, amount);
    }

    /// @notice Takes from a stake, for the treasury. Arbiter only.
    /// @dev The bonded part goes first: whoever is slashed below the minimum is off the list at once, and
    /// cannot keep its place with a stake that it is taking out. What is unbonding is reached next, and no
    /// later than it could have been taken out.
    /// @param provider_ Whose stake.
    /// @param amount Wei, at most all that is staked.
    /// @param evidence What it is for, 0 to 1024 bytes, for people to read; nothing here checks it.
    function slash(address provider_, uint256 amount, string calldata evidence) external nonReentrant {
        require(msg.sender == arbiter, NotArbiter(msg.sender));
        require(amount != 0, ZeroAmount());
        Bounds.check(evidence, "evidence", 0, MAX_EVIDENCE);
        Stake storage its = _stakes[provider_];
        uint256 staked = its.staked;
        require(amount <= staked, SlashExceedsStake(amount, staked));
        uint256 left = staked - amount;
        its.staked = left;
        if (its.unbonding > left) its.unbonding = left;
        if (its.unbonding == 0) its.unbondingUntil = 0;
        emit Slashed(provider_, amount, left, its.unbonding, evidence);
        token.safeTransfer(treasury, amount);
    }

    /// @dev Whether enough of the stake is bonded for being listed.
    function _isBonded(address provider_) internal view returns (bool) {
        Stake storage its = _stakes[provider_];
        return its.staked - its.unbonding >= minimumStake;
    }

    function _stake(uint256 amount) private {
        uint256 before = token.balanceOf(address(this));
        token.safeTransferFrom(msg.sender, address(this), amount);
        // What came counts, not what was asked for: a token that keeps a fee cannot make stakes that others
        // would have to pay for.
        uint256 received = token.balanceOf(address(this)) - before;
        require(received != 0, ZeroAmount());
        Stake storage own = _stakes[msg.sender];
        own.staked += received;
        emit Staked(msg.sender, received, own.staked);
    }
}
