// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

import {IERC20} from "@openzeppelin/contracts/token/ERC20/IERC20.sol";
import {Multicall} from "@openzeppelin/contracts/utils/Multicall.sol";

import {Bounds} from "./Bounds.sol";
import {Stakes} from "./Stakes.sol";

/// @title Who serves which model, where, when, at which price, and with what at stake.
/// @notice An endpoint is one model served by one provider at one base URL. It is active where its provider
/// is registered, has at least the minimum stake bonded and has set a price for the model, and the endpoint
/// is not stopped. All of that may be done in any order, and `multicall` does several in one transaction.
/// @dev Everyone writes only what is its own. Texts are what their writers say: a base URL is not proof of
/// being reachable there, nor a hash of serving that file; readers check both.
///
/// The events tell all: whoever applies them in order has the state of every mapping here. Whatever changes
/// nothing emits nothing.
contract ProviderRegistry is Stakes, Multicall {
    /// What somebody is registered as.
    enum Role {
        None,
        ModelProvider
    }

    /// When a provider serves.
    struct Schedule {
        bool isSet;
        /// IANA name, such as "Europe/Vienna".
        string timezone;
        /// Minutes after midnight there, 0 to 1439.
        uint16 startMinute;
        /// Minutes after midnight, 1 to 1440; before the start means on the next day.
        uint16 endMinute;
        /// Bit 0 is Monday, bit 6 Sunday: the days on which it starts.
        uint8 daysMask;
    }

    /// What a provider asks for a model, in wei per token.
    struct Pricing {
        bool isSet;
        /// How often it was set.
        uint64 version;
        /// Of the prompt, now.
        uint128 inputPrice;
        /// Of the answer, now.
        uint128 outputPrice;
        /// Unix seconds from when the pending prices hold; 0 where none are pending.
        uint64 pendingAt;
        uint128 pendingInputPrice;
        uint128 pendingOutputPrice;
    }

    /// All about a provider.
    struct ProviderView {
        address provider;
        Role role;
        string name;
        uint256 staked;
        uint256 unbonding;
        uint64 unbondingUntil;
        uint64 registeredAt;
        Schedule schedule;
    }

    /// All about an endpoint.
    struct EndpointView {
        bytes32 id;
        address provider;
        string modelId;
        bytes32 modelHash;
        string baseUrl;
        string meta;
        bool stopped;
        bool active;
        uint64 updatedAt;
        Pricing pricing;
    }

    struct Registration {
        Role role;
        uint64 registeredAt;
        bool isInList;
        string name;
    }

    struct Endpoint {
        address provider;
        uint64 updatedAt;
        bool stopped;
        bytes32 modelHash;
        string modelId;
        string baseUrl;
        string meta;
    }

    /// @notice Bytes of a model id at most; at least 1.
    uint256 public constant MAX_MODEL_ID = 128;
    /// @notice Bytes of a base URL at most; at least 1.
    uint256 public constant MAX_BASE_URL = 256;
    /// @notice Bytes of an endpoint's metadata at most.
    uint256 public constant MAX_META = 1024;
    /// @notice Bytes of a provider's name at most.
    uint256 public constant MAX_NAME = 64;
    /// @notice Bytes of a time zone's name at most; at least 1.
    uint256 public constant MAX_TIMEZONE = 64;
    /// @notice Entries of a page at most; a larger limit counts as this.
    uint256 public constant MAX_PAGE = 100;

    uint16 private constant MINUTES_OF_DAY = 24 * 60;
    uint8 private constant ALL_DAYS = 0x7f;

    /// @notice Seconds before a price that is higher, in either part, takes effect.
    uint64 public immutable priceDelay;

    mapping(address provider => Registration) private _registrations;
    mapping(address provider => Schedule) private _schedules;
    mapping(address provider => mapping(string modelId => Pricing)) private _pricing;
    mapping(bytes32 endpointId => Endpoint) private _endpoints;

    // Whoever was registered, and whatever was served, once: lists only grow, so that pages do not move.
    address[] private _providers;
    bytes32[] private _endpointIds;
    mapping(string modelId => bytes32[]) private _endpointIdsByModel;
    mapping(address provider => bytes32[]) private _endpointIdsOf;

    /// @notice `provider` is registered, or has another name now.
    event Registered(address indexed provider, Role role, string name);
    /// @notice `provider` is not registered any more; its stake, prices and endpoints stay.
    event Deregistered(address indexed provider);
    /// @notice `provider` serves at these times.
    event ScheduleSet(
        address indexed provider, string timezone, uint16 startMinute, uint16 endMinute, uint8 daysMask
    );
    /// @notice `provider` serves always.
    event ScheduleCleared(address indexed provider);
    /// @notice The endpoint is new, or is served again, with these values.
    event ModelServed(
        bytes32 indexed endpointId,
        address indexed provider,
        string modelId,
        bytes32 modelHash,
        string baseUrl,
        string meta
    );
    /// @notice The endpoint has these values now; whether it is stopped did not change.
    event EndpointUpdated(
        bytes32 indexed endpointId, address indexed provider, bytes32 modelHash, string meta
    );
    /// @notice The endpoint is stopped.
    event ModelStopped(bytes32 indexed endpointId, address indexed provider);
    /// @notice The prices (wei per token) hold from `effectiveAt` (Unix seconds) on; what held at this moment
    /// holds until then, and what was pending never will.
    event PricingSet(
        address indexed provider,
        string modelId,
        uint64 version,
        uint128 inputPrice,
        uint128 outputPrice,
        uint64 effectiveAt
    );

    /// @notice There is nothing to register as.
    error InvalidRole(Role role);
    /// @notice Whoever is not registered cannot deregister.
    error NotRegistered(address provider);
    /// @notice Start 0 to 1439, end 1 to 1440 and another minute, at least one of seven days.
    error InvalidSchedule(uint16 startMinute, uint16 endMinute, uint8 daysMask);
    /// @notice There was never such an endpoint.
    error EndpointNotFound(bytes32 endpointId);
    /// @notice The endpoint is another provider's.
    error NotEndpointOwner(bytes32 endpointId, address caller);

    /// @param token_ What is staked: TNZO.
    /// @param arbiter_ Who may slash.
    /// @param treasury_ Who gets what is slashed.
    /// @param minimumStake_ Wei that have to be bonded for endpoints to be active.
    /// @param unbondingPeriod_ Seconds between asking for a stake and taking it out.
    /// @param priceDelay_ Seconds before a higher price takes effect.
    constructor(
        IERC20 token_,
        address arbiter_,
        address treasury_,
        uint256 minimumStake_,
        uint64 unbondingPeriod_,
        uint64 priceDelay_
    ) Stakes(token_, arbiter_, treasury_, minimumStake_, unbondingPeriod_) {
        priceDelay = priceDelay_;
    }

    // --- Registration -----------------------------------------------------------------------------

    /// @notice Registers the caller, or changes its name.
    /// @param role As what.
    /// @param name Anything, 0 to 64 bytes; not unique.
    function register(Role role, string calldata name) external {
        require(role != Role.None, InvalidRole(role));
        Bounds.check(name, "name", 0, MAX_NAME);
        Registration storage own = _registrations[msg.sender];
        if (!own.isInList) {
            own.isInList = true;
            _providers.push(msg.sender);
        }
        if (own.role == Role.None) own.registeredAt = uint64(block.timestamp);
        own.role = role;
        own.name = name;
        emit Registered(msg.sender, role, name);
    }

    /// @notice Takes the caller's registration back. Its endpoints are not active any more, until it
    /// registers again; its stake stays, and is asked for with `requestUnstake`.
    function deregister() external {
        Registration storage own = _registrations[msg.sender];
        require(own.role != Role.None, NotRegistered(msg.sender));
        own.role = Role.None;
        own.registeredAt = 0;
        delete own.name;
        emit Deregistered(msg.sender);
    }

    /// @notice Says when the caller serves.
    /// @param timezone IANA name, 1 to 64 bytes; not checked.
    /// @param startMinute Minutes after midnight, 0 to 1439.
    /// @param endMinute Minutes after midnight, 1 to 1440; before the start means on the next day.
    /// @param daysMask Bit 0 is Monday, bit 6 Sunday; at least one.
    function setSchedule(
        string calldata timezone,
        uint16 startMinute,
        uint16 endMinute,
        uint8 daysMask
    ) external {
        Bounds.check(timezone, "timezone", 1, MAX_TIMEZONE);
        bool isTime = startMinute < MINUTES_OF_DAY && endMinute != 0 && endMinute <= MINUTES_OF_DAY
            && startMinute != endMinute;
        require(
            isTime && daysMask != 0 && daysMask <= ALL_DAYS, InvalidSchedule(startMinute, endMinute, daysMask)
        );
        _schedules[msg.sender] = Schedule(true, timezone, startMinute, endMinute, daysMask);
        emit ScheduleSet(msg.sender, timezone, startMinute, endMinute, daysMask);
    }

    /// @notice The caller serves always.
    function clearSchedule() external {
        if (!_schedules[msg.sender].isSet) return;
        delete _schedules[msg.sender];
        emit ScheduleCleared(msg.sender);
    }

    // --- Models and prices ------------------------------------------------------------------------

    /// @notice Offers a model at a base URL; one that was stopped there is offered again.
    /// @param modelId 1 to 128 bytes.
    /// @param modelHash SHA-256 of the model file; zero where there is none to name.
    /// @param baseUrl Where its OpenAI API is, 1 to 256 bytes.
    /// @param meta More for clients to read, 0 to 1024 bytes.
    /// @return endpointId `keccak256(abi.encode(provider, modelId, baseUrl))`.
    function serveModel(
        string calldata modelId,
        bytes32 modelHash,
        string calldata baseUrl,
        string calldata meta
    ) external returns (bytes32 endpointId) {
        Bounds.check(modelId, "modelId", 1, MAX_MODEL_ID);
        Bounds.check(baseUrl, "baseUrl", 1, MAX_BASE_URL);
        Bounds.check(meta, "meta", 0, MAX_META);
        endpointId = keccak256(abi.encode(msg.sender, modelId, baseUrl));
        Endpoint storage own = _endpoints[endpointId];
        if (own.provider == address(0)) {
            own.provider = msg.sender;
            own.modelId = modelId;
            own.baseUrl = baseUrl;
            _endpointIds.push(endpointId);
            _endpointIdsByModel[modelId].push(endpointId);
            _endpointIdsOf[msg.sender].push(endpointId);
        }
        own.stopped = false;
        own.updatedAt = uint64(block.timestamp);
        own.modelHash = modelHash;
        own.meta = meta;
        emit ModelServed(endpointId, msg.sender, modelId, modelHash, baseUrl, meta);
    }

    /// @notice Changes what may change about an endpoint of the caller; a stopped one stays stopped.
    /// @param modelHash SHA-256 of the model file; zero where there is none to name.
    /// @param meta 0 to 1024 bytes.
    function updateEndpoint(bytes32 endpointId, bytes32 modelHash, string calldata meta) external {
        Bounds.check(meta, "meta", 0, MAX_META);
        Endpoint storage own = _own(endpointId);
        own.updatedAt = uint64(block.timestamp);
        own.modelHash = modelHash;
        own.meta = meta;
        emit EndpointUpdated(endpointId, msg.sender, modelHash, meta);
    }

    /// @notice Takes an endpoint of the caller off, until `serveModel` is called for it again.
    function stopModel(bytes32 endpointId) external {
        Endpoint storage own = _own(endpointId);
        if (own.stopped) return;
        own.stopped = true;
        own.updatedAt = uint64(block.timestamp);
        emit ModelStopped(endpointId, msg.sender);
    }

    /// @notice Sets what the caller asks for a model, at all its endpoints. May be done before serving it.
    /// @dev The first price, and one that is not higher in either part than what holds now, take effect at
    /// once. Any other waits `priceDelay` seconds from this call, whatever was pending: an earlier call
    /// cannot shorten the notice of a later one. What was pending is dropped.
    /// @param modelId 1 to 128 bytes.
    /// @param inputPrice Wei per token of the prompt; 0 is free.
    /// @param outputPrice Wei per token of the answer; 0 is free.
    function setPricing(string calldata modelId, uint128 inputPrice, uint128 outputPrice) external {
        Bounds.check(modelId, "modelId", 1, MAX_MODEL_ID);
        Pricing memory next = pricing(msg.sender, modelId);
        bool isRise = next.isSet && (inputPrice > next.inputPrice || outputPrice > next.outputPrice);
        uint64 effectiveAt = uint64(block.timestamp);
        next.isSet = true;
        next.version += 1;
        if (isRise) {
            effectiveAt += priceDelay;
            (next.pendingAt, next.pendingInputPrice, next.pendingOutputPrice) =
            (effectiveAt, inputPrice, outputPrice);
        } else {
            (next.inputPrice, next.outputPrice) = (inputPrice, outputPrice);
            _clearPending(next);
        }
        _pricing[msg.sender][modelId] = next;
        emit PricingSet(msg.sender, modelId, next.version, inputPrice, outputPrice, effectiveAt);
    }

    // --- Views ------------------------------------------------------------------------------------

    /// @notice All about an address; all zero for one that is unknown.
    function provider(address account) public view returns (ProviderView memory) {
        Registration storage registration = _registrations[account];
        Stake storage its = _stakes[account];
        return ProviderView({
            provider: account,
            role: registration.role,
            name: registration.name,
            staked: its.staked,
            unbonding: its.unbonding,
            unbondingUntil: its.unbondingUntil,
            registeredAt: registration.registeredAt,
            schedule: _schedules[account]
        });
    }

    /// @notice What a provider asks for a model at this moment, and what is pending.
    function pricing(address provider_, string memory modelId) public view returns (Pricing memory) {
        Pricing memory its = _pricing[provider_][modelId];
        if (its.pendingAt != 0 && its.pendingAt <= block.timestamp) {
            (its.inputPrice, its.outputPrice) = (its.pendingInputPrice, its.pendingOutputPrice);
            _clearPending(its);
        }
        return its;
    }

    /// @notice All about an endpoint.
    function endpoint(bytes32 endpointId) public view returns (EndpointView memory) {
        Endpoint storage its = _endpoints[endpointId];
        require(its.provider != address(0), EndpointNotFound(endpointId));
        return EndpointView({
            id: endpointId,
            provider: its.provider,
            modelId: its.modelId,
            modelHash: its.modelHash,
            baseUrl: its.baseUrl,
            meta: its.meta,
            stopped: its.stopped,
            active: isActive(endpointId),
            updatedAt: its.updatedAt,
            pricing: pricing(its.provider, its.modelId)
        });
    }

    /// @notice Whether consumers may use the endpoint; never for one that does not exist.
    function isActive(bytes32 endpointId) public view returns (bool) {
        Endpoint storage its = _endpoints[endpointId];
        return _registrations[its.provider].role != Role.None && !its.stopped && _isBonded(its.provider)
            && _pricing[its.provider][its.modelId].isSet;
    }

    /// @notice How many addresses were ever registered.
    function providerCount() external view returns (uint256) {
        return _providers.length;
    }

    /// @notice How many endpoints there ever were.
    function endpointCount() external view returns (uint256) {
        return _endpointIds.length;
    }

    /// @notice Addresses that were ever registered, oldest first.
    /// @param offset How many to leave out.
    /// @param limit How many at most; never more than `MAX_PAGE`.
    function providers(uint256 offset, uint256 limit) external view returns (ProviderView[] memory page) {
        page = new ProviderView[](_pageLength(_providers.length, offset, limit));
        for (uint256 i = 0; i < page.length; ++i) {
            page[i] = provider(_providers[offset + i]);
        }
    }

    /// @notice All endpoints, stopped ones included, oldest first.
    /// @param offset How many to leave out.
    /// @param limit How many at most; never more than `MAX_PAGE`.
    function endpoints(uint256 offset, uint256 limit) external view returns (EndpointView[] memory) {
        return _page(_endpointIds, offset, limit);
    }

    /// @notice All endpoints of a model, stopped ones included, oldest first.
    /// @param offset How many to leave out.
    /// @param limit How many at most; never more than `MAX_PAGE`.
    function endpointsByModel(
        string calldata modelId,
        uint256 offset,
        uint256 limit
    ) external view returns (EndpointView[] memory) {
        return _page(_endpointIdsByModel[modelId], offset, limit);
    }

    /// @notice All endpoints of a provider, stopped ones included, oldest first.
    /// @param offset How many to leave out.
    /// @param limit How many at most; never more than `MAX_PAGE`.
    function endpointsOf(
        address provider_,
        uint256 offset,
        uint256 limit
    ) external view returns (EndpointView[] memory) {
        return _page(_endpointIdsOf[provider_], offset, limit);
    }

    // --- Inside -----------------------------------------------------------------------------------

    function _own(bytes32 endpointId) private view returns (Endpoint storage own) {
        own = _endpoints[endpointId];
        require(own.provider != address(0), EndpointNotFound(endpointId));
        require(own.provider == msg.sender, NotEndpointOwner(endpointId, msg.sender));
    }

    function _clearPending(Pricing memory its) private pure {
        (its.pendingAt, its.pendingInputPrice, its.pendingOutputPrice) = (0, 0, 0);
    }

    function _page(
        bytes32[] storage ids,
        uint256 offset,
        uint256 limit
    ) private view returns (EndpointView[] memory page) {
        page = new EndpointView[](_pageLength(ids.length, offset, limit));
        for (uint256 i = 0; i < page.length; ++i) {
            page[i] = endpoint(ids[offset + i]);
        }
    }

    function _pageLength(uint256 length, uint256 offset, uint256 limit) private pure returns (uint256) {
        if (offset >= length) return 0;
        uint256 left = length - offset;
        if (limit > MAX_PAGE) limit = MAX_PAGE;
        return limit < left ? limit : left;
    }
}
